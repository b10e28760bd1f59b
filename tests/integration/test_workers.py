"""Several decode workers: sessions stay where their KV is, load spreads, a drained worker gets nothing."""

import asyncio
from typing import Any

import pytest
from turns import EVERYTHING, chat, complete, greedy, prompt, text, until, worker_of

from tactic.service.client import WorkerState

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


async def session_with(client: Any, seed: int, length: int = 1500) -> str:
    session = (await client.create_session()).session_id
    await client.append_context(session, text(length, seed=seed), prefill=False)
    return str(session)


async def test_load_spreads(without_refresh: Any) -> None:
    client = without_refresh.client
    answers = await asyncio.gather(
        *(complete(client, prompt(600, seed=n), EVERYTHING, greedy(64)) for n in range(6))
    )
    assert {worker_of(answer) for answer in answers} == {"decode-0", "decode-1"}


async def test_sessions_stay_and_a_drained_worker_hands_them_over(without_refresh: Any) -> None:
    client = without_refresh.client
    sessions = [await session_with(client, seed) for seed in range(4)]
    first = await asyncio.gather(*(chat(client, s, "What is this?", EVERYTHING, 8) for s in sessions))
    home = dict(zip(sessions, map(worker_of, first), strict=True))
    assert set(home.values()) == {"decode-0", "decode-1"}
    # One after the other, so that no load speaks against the other worker.
    for session in reversed(sessions):
        answer = await chat(client, session, "And that?", EVERYTHING, 8)
        assert worker_of(answer) == home[session]
        assert answer.usage.prefix_tokens_reused >= 1500
        assert answer.attention.tokens_index_reused >= 1024

    twin = {s: (await client.fork_session(s)).session_id for s in sessions}
    stayed = {s: await chat(client, twin[s], "Once more?", EVERYTHING, 16) for s in sessions}
    drained = await client.drain_worker("decode-1")
    assert drained.state == WorkerState.WORKER_STATE_DRAINING
    await until(client, lambda now: now["decode-1"].state == WorkerState.WORKER_STATE_DRAINING)
    for session in sessions:
        answer = await chat(client, session, "Once more?", EVERYTHING, 16)
        assert worker_of(answer) == "decode-0"
        assert answer.token_ids == stayed[session].token_ids
