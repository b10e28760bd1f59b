"""The KV prefix and its index are found again: by a second turn, a fork, another session."""

import asyncio
from typing import Any

import grpc
import pytest
from turns import DENSE, EVERYTHING, chat, complete, greedy, prompt, text, until

from tactic.worker.v1.worker_pb2 import GetStatsRequest
from tactic.worker.v1.worker_pb2_grpc import WorkerServiceStub

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CONTEXT, ANSWER = 5000, 20
SEGMENT, MIN_PIECE = 2048, 256
"""Of the shared deployment: positions clustered together, and the fewest that are."""


async def test_a_second_turn_computes_and_clusters_only_what_is_new(stack: Any) -> None:
    session = (await stack.client.create_session()).session_id
    await stack.client.append_context(session, text(CONTEXT, seed=1), prefill=False)
    first = await chat(stack.client, session, "What is this?", EVERYTHING, ANSWER)
    assert first.usage.prefix_tokens_reused < 64
    assert first.attention.tokens_index_reused == 0
    clustered = first.attention.tokens_clustered
    assert first.usage.prompt_tokens - MIN_PIECE < clustered <= first.usage.prompt_tokens

    message = text(700, seed=2)
    second = await chat(stack.client, session, message, EVERYTHING, ANSWER)
    log = first.usage.prompt_tokens + ANSWER
    new = second.usage.prompt_tokens - log
    assert len(message) <= new < len(message) + 100
    assert second.usage.prefix_tokens_reused >= log - 1
    assert second.attention.tokens_index_reused == clustered
    # The first turn's tail and answer, and the new message.
    assert new <= second.attention.tokens_clustered <= new + (log - clustered)


async def test_many_short_turns_stay_in_the_index(stack: Any) -> None:
    session = (await stack.client.create_session()).session_id
    again = []
    for turn in range(20):
        answer = await chat(stack.client, session, text(280, seed=turn), EVERYTHING, 4)
        log, stats = answer.usage.prompt_tokens, answer.attention
        again.append(stats.tokens_index_reused + stats.tokens_clustered - log > 0)
    # Once their short segments were too many, they were clustered again, into whole ones.
    assert again.index(True) == 16
    assert sum(again) == 1
    fork = (await stack.client.fork_session(session)).session_id
    sparse = await chat(stack.client, session, "And then?", EVERYTHING, ANSWER)
    assert sparse.attention.tokens_index_reused >= log - MIN_PIECE
    dense = await chat(stack.client, fork, "And then?", DENSE, ANSWER)
    assert sparse.token_ids == dense.token_ids


async def test_a_fork_shares_prefix_and_index(stack: Any) -> None:
    parent = (await stack.client.create_session()).session_id
    await stack.client.append_context(parent, text(CONTEXT, seed=3), prefill=False)
    first = await chat(stack.client, parent, "What is this?", EVERYTHING, ANSWER)
    log = first.usage.prompt_tokens + ANSWER
    fork = (await stack.client.fork_session(parent)).session_id
    answers = [await chat(stack.client, name, "And that?", EVERYTHING, ANSWER) for name in (fork, parent)]
    assert answers[0].token_ids == answers[1].token_ids
    for answer in answers:
        assert answer.usage.prefix_tokens_reused >= log - 1
        assert answer.attention.tokens_index_reused >= first.attention.tokens_clustered
        assert answer.attention.tokens_clustered <= answer.usage.prompt_tokens - log + MIN_PIECE


async def test_another_request_on_the_prefix_finds_its_whole_segments(stack: Any) -> None:
    shared = prompt(2 * SEGMENT + 500, seed=4)
    await complete(stack.client, shared, EVERYTHING, greedy(4))
    own = shared[: 2 * SEGMENT + 100] + prompt(600, seed=5)
    answer = await complete(stack.client, own, EVERYTHING, greedy(4))
    assert answer.usage.prefix_tokens_reused == 2 * SEGMENT + 100
    assert answer.attention.tokens_index_reused == 2 * SEGMENT
    assert answer.attention.tokens_clustered == len(own) - 2 * SEGMENT - 1


async def test_prefill_of_an_appended_context_is_the_turns_prefix(stack: Any) -> None:
    session = (await stack.client.create_session()).session_id
    worker = (await until(stack.client, bool))["decode-0"]
    async with grpc.aio.insecure_channel(worker.address) as channel:
        # From the worker itself: what the front end shows may be a second old.
        ask = WorkerServiceStub(channel).GetStats
        before = await ask(GetStatsRequest())
        await stack.client.append_context(session, text(CONTEXT, seed=6), prefill=True)
        async with asyncio.timeout(120):
            now = before
            # The last position is clustered by whoever reads it.
            while now.running_requests or now.tokens_clustered < before.tokens_clustered + CONTEXT - 1:
                await asyncio.sleep(0.05)
                now = await ask(GetStatsRequest())
    answer = await chat(stack.client, session, "What is this?", EVERYTHING, ANSWER)
    assert answer.usage.prefix_tokens_reused >= CONTEXT - 1
    assert answer.attention.tokens_index_reused >= CONTEXT - MIN_PIECE


@pytest.mark.parametrize("tokens", [1, 4])
async def test_prompts_that_begin_alike_and_are_prefilled_together_keep_their_index(
    stack: Any, tokens: int
) -> None:
    # The prefix cache keeps one copy of what they share: all but one of them end up in another's slots.
    beginning = prompt(20, seed=100 * tokens)
    prompts = [beginning + prompt(600, seed=100 * tokens + n) for n in range(4)]
    # They wait for a long one that has begun, and so come into one batch.
    long = stack.client.complete(prompt(3 * 4096, seed=tokens), tactic=EVERYTHING, sampling=greedy(1))
    await anext(long)
    await asyncio.gather(*(complete(stack.client, each, EVERYTHING, greedy(tokens)) for each in prompts))
    assert [event async for event in long]
    for each in prompts:
        answer = await complete(stack.client, each, EVERYTHING, greedy(4))
        assert answer.usage.prefix_tokens_reused >= len(each) - 1
        assert answer.attention.tokens_index_reused >= len(each) - MIN_PIECE
