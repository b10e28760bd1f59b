"""What befalls single requests: cancellation, the end of the context."""

import asyncio
from typing import Any

import pytest
from turns import EVERYTHING, complete, greedy, prompt, until, usage

from tactic.service.client import FinishReason, InvalidRequestError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CONTEXT = 4096
"""Of the deployment without refresh."""


async def test_cancelled_requests_free_the_worker(stack: Any) -> None:
    streams = [
        stack.client.complete(prompt(1200, seed=n), tactic=EVERYTHING, sampling=greedy(4000))
        for n in range(3)
    ]
    for stream in streams:
        for _ in range(2):
            await anext(stream)
    await until(stack.client, lambda now: sum(w.stats.running_requests for w in now.values()) == 3)
    await asyncio.gather(*(stream.aclose() for stream in streams))
    await until(
        stack.client,
        lambda now: not any(w.stats.running_requests or w.stats.waiting_requests for w in now.values()),
        timeout_s=30,
    )
    answer = await complete(stack.client, prompt(50), EVERYTHING, greedy(4))
    assert len(answer.token_ids) == 4


async def test_generation_ends_where_the_context_ends(without_refresh: Any) -> None:
    answer = await complete(without_refresh.client, prompt(CONTEXT - 30), EVERYTHING, greedy(1000))
    assert answer.finished is not None
    assert answer.finished.reason == FinishReason.FINISH_REASON_LENGTH
    assert usage(answer).prompt_tokens + usage(answer).completion_tokens == CONTEXT


async def test_a_prompt_that_fills_the_context_is_refused(without_refresh: Any) -> None:
    with pytest.raises(InvalidRequestError, match=str(CONTEXT)):
        await complete(without_refresh.client, prompt(CONTEXT), EVERYTHING, greedy(1))
    await complete(without_refresh.client, prompt(CONTEXT - 1), EVERYTHING, greedy(1))
