from typing import Any

import pytest

from tactic.v1.types_pb2 import ATTENTION_MODE_DENSE, SamplingOptions, TacticOptions
from tactic.workers.decode.validate import (
    InvalidRequestError,
    check_prompt,
    sampling_parameters,
    tactic_parameters,
)

ID = "0123456789abcdef" * 2
NAN = float("nan")


@pytest.mark.parametrize(
    ("request_id", "prompt", "field"),
    [
        ("", [1], "request_id"),
        (ID.upper(), [1], "request_id"),
        (ID + "0", [1], "request_id"),
        (ID, [], "token_ids"),
        (ID, [0] * 100, "token_ids"),
        (ID, [5, 50, 7], "token_ids"),
    ],
)
def test_bad_prompts(request_id: str, prompt: list[int], field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field) as caught:
        check_prompt(request_id, prompt, vocabulary=50, limit=100)
    assert caught.value.field == field


def test_good_prompts() -> None:
    check_prompt(ID, [0], vocabulary=50, limit=100)
    check_prompt(ID, [49] * 99, vocabulary=50, limit=100)


def test_defaults_are_greedy_and_fill_the_context() -> None:
    assert sampling_parameters(SamplingOptions(), room=77, seed=5) == {
        "temperature": 0.0,
        "top_p": 1.0,
        "max_new_tokens": 77,
        "ignore_eos": False,
        "sampling_seed": 5,
    }


def test_options_are_taken_and_max_tokens_kept_to_the_room() -> None:
    options = SamplingOptions(temperature=0.7, top_p=0.9, max_tokens=100, seed=2**40 + 3, ignore_eos=True)
    assert sampling_parameters(options, room=60, seed=5) == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_new_tokens": 60,
        "ignore_eos": True,
        "sampling_seed": 3,
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", NAN),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", NAN),
        ("max_tokens", 0),
        ("logprobs", 21),
    ],
)
def test_bad_sampling(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sampling_parameters(SamplingOptions(**{field: value}), room=10, seed=0)
    assert caught.value.field == f"sampling.{field}"


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", 0.0), ("threshold", 1.01), ("threshold", NAN), ("estimator", "guess")]
)
def test_bad_tactic_options(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        tactic_parameters(TacticOptions(**{field: value}))
    assert caught.value.field == f"tactic.{field}"


def test_only_what_is_set_travels_to_the_backend() -> None:
    assert tactic_parameters(TacticOptions()) == {"tactic": {}}
    options = TacticOptions(mode=ATTENTION_MODE_DENSE, threshold=1.0, estimator="exact", measure=True)
    assert tactic_parameters(options) == {
        "tactic": {"mode": "dense", "threshold": 1.0, "estimator": "exact", "measure": True}
    }
