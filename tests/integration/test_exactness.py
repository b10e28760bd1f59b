"""With a threshold of 1 the sparse path must give what dense attention gives, token for token."""

import asyncio
import statistics
from typing import Any

import pytest
from turns import DENSE, EVERYTHING, complete, greedy, prompt

from tactic.service.client import Answer, AttentionMode, TacticOptions

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

# Around the least clustered length (1024) and the segment size (2048), in one segment and in several, in one
# prefill chunk (4096) and in two.
LENGTHS = (
    *(1, 10, 33, 100, 257, 500, 900),
    *(1023, 1024, 1025, 1056, 1300, 1700),
    *(2047, 2048, 2049, 2304, 2600, 3100),
    *(4095, 4097, 5000, 6000),
)
STEPS = 48
MIN_CLUSTERED = 1024
SPARSE = TacticOptions(mode=AttentionMode.ATTENTION_MODE_TACTIC, threshold=0.7)


@pytest.fixture(scope="module")
async def dense(stack: Any) -> dict[int, Answer]:
    """Dense attention's answer to a prompt of each length, one at a time."""
    sampling = greedy(STEPS)
    return {n: await complete(stack.client, prompt(n), DENSE, sampling) for n in LENGTHS}


def test_the_reference_is_dense_and_not_trivial(dense: dict[int, Answer]) -> None:
    for answer in dense.values():
        assert len(answer.token_ids) == STEPS
        assert answer.attention.dense_steps == answer.attention.decode_steps
        assert len(set(answer.token_ids)) > STEPS // 4


async def test_everything_equals_dense_one_at_a_time(stack: Any, dense: dict[int, Answer]) -> None:
    swaps = 0
    for n, expected in dense.items():
        answer = await complete(stack.client, prompt(n), EVERYTHING, greedy(STEPS))
        assert answer.token_ids == expected.token_ids, f"prompt of {n}"
        stats = answer.attention
        swaps += stats.refreshes
        if n > MIN_CLUSTERED:
            assert stats.dense_steps == 0, f"prompt of {n} did not run through the index"
            assert list(stats.read_share_per_layer) == pytest.approx([1.0] * 4)
    assert swaps > 0


async def test_everything_equals_dense_in_a_mixed_batch(stack: Any, dense: dict[int, Answer]) -> None:
    async def ask(n: int, options: TacticOptions) -> Answer:
        return await complete(stack.client, prompt(n), options, greedy(STEPS))

    kinds = (EVERYTHING, DENSE, EVERYTHING, SPARSE)
    asked = [(n, kinds[i % 4]) for i, n in enumerate(LENGTHS)]
    answers = await asyncio.gather(*(ask(n, options) for n, options in asked))
    for (n, options), answer in zip(asked, answers, strict=True):
        if options is not SPARSE:
            assert answer.token_ids == dense[n].token_ids, f"prompt of {n}"
    sparse = [a for (n, o), a in zip(asked, answers, strict=True) if o is SPARSE and n > MIN_CLUSTERED]
    assert sparse
    assert all(max(answer.attention.read_share_per_layer) < 1 for answer in sparse)


async def test_logprobs_of_everything_are_those_of_dense(stack: Any) -> None:
    sampling = greedy(8, logprobs=3)
    expected = await complete(stack.client, prompt(2600), DENSE, sampling)
    answer = await complete(stack.client, prompt(2600), EVERYTHING, sampling)
    for a, b in zip(answer.logprobs, expected.logprobs, strict=True):
        assert (a.token_id, [top.token_id for top in a.top]) == (b.token_id, [top.token_id for top in b.top])
        assert [t.logprob for t in a.top] == pytest.approx([t.logprob for t in b.top], abs=1e-3)
        assert a.logprob == a.top[0].logprob


@pytest.mark.parametrize("estimator", ["guarded", "fit", "centroid", "exact"])
async def test_the_share_asked_for_is_reached_on_average(stack: Any, estimator: str) -> None:
    options = TacticOptions(threshold=0.9, estimator=estimator, measure=True)
    answers = await asyncio.gather(
        *(complete(stack.client, prompt(n), options, greedy(24)) for n in (3100, 5000, 6000))
    )
    for answer in answers:
        stats = answer.attention
        assert stats.attention_share_mean >= 0.9
        assert 0.5 < stats.attention_share_p10 <= 1
        # Of random weights, attention is nearly even: the layer that needs most is read whole by the default.
        assert statistics.mean(stats.read_share_per_layer) < 1
        assert max(stats.read_share_per_layer) < 1 or estimator == "guarded"
