"""What befalls single requests: cancellation, the end of the context."""

import asyncio
from typing import Any

import pytest
from turns import DENSE, EVERYTHING, complete, greedy, prompt, until

from tactic.service.client import Answer, FinishReason, InvalidRequestError

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
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == CONTEXT


async def test_a_prompt_that_fills_the_context_is_refused(without_refresh: Any) -> None:
    with pytest.raises(InvalidRequestError, match=str(CONTEXT)):
        await complete(without_refresh.client, prompt(CONTEXT), EVERYTHING, greedy(1))
    await complete(without_refresh.client, prompt(CONTEXT - 1), EVERYTHING, greedy(1))


async def test_retracted_requests_lose_nothing(stack: Any, without_refresh: Any) -> None:
    """Eight requests outgrow two pools of 6144 tokens, so the engine takes some back and runs them again."""
    prompts, sampling = [prompt(1100, seed=n) for n in range(8)], greedy(520)
    decoding = [asyncio.Event() for _ in prompts]

    async def ask(n: int) -> Answer:
        answer = Answer()
        async for event in without_refresh.client.complete(prompts[n], tactic=EVERYTHING, sampling=sampling):
            answer.add(event)
            if answer.token_ids:
                decoding[n].set()
        return answer

    expected = await asyncio.gather(*(complete(stack.client, p, DENSE, sampling) for p in prompts))
    # The engine reserves less for requests that decode already, so one more fits beside three of them.
    asked = [asyncio.create_task(ask(n)) for n in range(6)]
    await asyncio.gather(*(event.wait() for event in decoding[:6]))
    asked += [asyncio.create_task(ask(n)) for n in (6, 7)]
    answers = await asyncio.gather(*asked)
    # Without refreshes there is one version of the index for each stay in a request slot.
    stays = [len(answer.attention.index_versions) for answer in answers]
    assert max(stays) > 1, stays
    for answer, reference in zip(answers, expected, strict=True):
        assert answer.token_ids == reference.token_ids
