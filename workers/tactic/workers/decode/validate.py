"""Checks a request before the engine sees it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tactic.kernels.estimators import NAMES
from tactic.v1.types_pb2 import ATTENTION_MODE_DENSE, SamplingOptions, TacticOptions

MAX_LOGPROBS = 20
_REQUEST_ID = re.compile(r"[0-9a-f]{32}")


class InvalidRequestError(ValueError):
    """A field of a request is out of its limits.

    Attributes:
        field: its path in the message.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def check_prompt(request_id: str, token_ids: Sequence[int], *, vocabulary: int, limit: int) -> None:
    """Checks the id and the prompt. Raises InvalidRequestError.

    Args:
        request_id: 32 lower-case hex digits.
        token_ids: the prompt.
        vocabulary: token ids below it exist.
        limit: most positions of prompt and output together.
    """
    if not _REQUEST_ID.fullmatch(request_id):
        raise InvalidRequestError("request_id", "must be 32 lower-case hex digits")
    if not token_ids:
        raise InvalidRequestError("token_ids", "the prompt is empty; give at least one token")
    if len(token_ids) >= limit:
        raise InvalidRequestError(
            "token_ids",
            f"{len(token_ids)} tokens leave no room in a context of {limit}; send at most {limit - 1}",
        )
    if max(token_ids) >= vocabulary:
        raise InvalidRequestError("token_ids", f"{max(token_ids)} is outside the vocabulary of {vocabulary}")


def sampling_parameters(options: SamplingOptions, *, room: int, seed: int) -> dict[str, Any]:
    """SGLang's sampling parameters. Raises InvalidRequestError.

    Args:
        options: as requested.
        room: most tokens that still fit the context.
        seed: for a request that names none.
    """
    temperature = options.temperature if options.HasField("temperature") else 0.0
    top_p = options.top_p if options.HasField("top_p") else 1.0
    if not 0 <= temperature <= 2:
        raise InvalidRequestError("sampling.temperature", f"{temperature} is outside [0, 2]")
    if not 0 < top_p <= 1:
        raise InvalidRequestError("sampling.top_p", f"{top_p} is outside (0, 1]")
    if options.HasField("max_tokens") and options.max_tokens < 1:
        raise InvalidRequestError("sampling.max_tokens", "must be at least 1")
    if options.HasField("logprobs") and options.logprobs > MAX_LOGPROBS:
        raise InvalidRequestError("sampling.logprobs", f"{options.logprobs} is more than {MAX_LOGPROBS}")
    return {
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": min(options.max_tokens or room, room),
        "ignore_eos": options.ignore_eos,
        "sampling_seed": (options.seed if options.HasField("seed") else seed) % 2**31,
    }


def tactic_parameters(options: TacticOptions) -> dict[str, Any]:
    """What travels to the attention backend as SGLang's `custom_params`. Raises InvalidRequestError."""
    parameters: dict[str, Any] = {}
    if options.mode == ATTENTION_MODE_DENSE:
        parameters["mode"] = "dense"
    if options.HasField("threshold"):
        if not 0 < options.threshold <= 1:
            raise InvalidRequestError("tactic.threshold", f"{options.threshold} is outside (0, 1]")
        parameters["threshold"] = options.threshold
    if options.HasField("estimator"):
        if options.estimator not in NAMES:
            raise InvalidRequestError(
                "tactic.estimator", f"{options.estimator!r} is not one of {', '.join(sorted(NAMES))}"
            )
        parameters["estimator"] = options.estimator
    if options.measure:
        parameters["measure"] = True
    return {"tactic": parameters}
