"""Workers that die or hang under load: no request fails, no token changes, and the dead come back."""

import asyncio
import os
import signal

import psutil
import pytest
from turns import (
    DENSE,
    EVERYTHING,
    chat,
    clustering_worker,
    complete,
    greedy,
    prompt,
    text,
    until,
    worker_of,
    workers,
)

from tactic.service.client import (
    Answer,
    TacticClient,
    TextDelta,
    TurnStarted,
    WorkerKind,
    WorkerState,
)

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

LENGTHS, STEPS = (1500, 2600, 3000), 200
CLUSTERING, DECODE = WorkerKind.WORKER_KIND_CLUSTERING, WorkerKind.WORKER_KIND_DECODE


@pytest.fixture(scope="module")
async def dense(client: TacticClient) -> dict[int, Answer]:
    asked = (complete(client, prompt(n), DENSE, greedy(STEPS)) for n in LENGTHS)
    return dict(zip(LENGTHS, await asyncio.gather(*asked), strict=True))


async def refresh_counts(client: TacticClient) -> tuple[int, int]:
    """Refreshes requested, and those that have ended."""
    stats = [worker.stats for worker in (await workers(client, DECODE)).values()]
    ended = sum(s.refreshes_published + s.refreshes_dropped for s in stats)
    return sum(s.refreshes_requested for s in stats), ended


async def caught_in_a_refresh(client: TacticClient, pid: int) -> None:
    """Stops the clustering worker and waits until a refresh waits for it."""
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(120):
        while True:
            requested, ended = await refresh_counts(client)
            if requested > ended:
                return
            await asyncio.sleep(0.05)


async def engine_process(worker: int) -> psutil.Process:
    """SGLang's scheduler, a child of a decode worker."""
    for _ in range(100):
        family = psutil.Process(worker).children(recursive=True)
        # The kernel keeps 15 characters of a name; psutil completes them where it can read the command line.
        found = [child for child in family if child.name().startswith("sglang::schedul")]
        if found:
            return found[0]
        await asyncio.sleep(0.05)
    names = [(child.pid, child.name()) for child in family]
    raise AssertionError(f"decode worker {worker} has no scheduler among its children {names}")


@pytest.mark.parametrize("fault", ["killed", "hung"])
async def test_clustering_worker_lost_in_a_refresh(
    client: TacticClient, dense: dict[int, Answer], fault: str
) -> None:
    before = await clustering_worker(client)
    asked = [asyncio.create_task(complete(client, prompt(n), EVERYTHING, greedy(STEPS))) for n in LENGTHS]
    await caught_in_a_refresh(client, before.pid)
    if fault == "killed":
        os.kill(before.pid, signal.SIGKILL)
    # Where it hangs, its time limit must find out.
    for n, answer in zip(LENGTHS, await asyncio.gather(*asked), strict=True):
        assert answer.token_ids == dense[n].token_ids

    now = await until(
        client,
        lambda now: all(w.pid != before.pid and w.restarts > before.restarts for w in now.values()),
        CLUSTERING,
    )
    assert (await clustering_worker(client)).pid in {worker.pid for worker in now.values()}
    # Refreshes go on; jobs from before the fault may be done first.
    async with asyncio.timeout(120):
        published = 0
        while not published:
            again = await complete(client, prompt(LENGTHS[0]), EVERYTHING, greedy(STEPS))
            assert again.token_ids == dense[LENGTHS[0]].token_ids
            published = again.attention.refreshes


async def test_a_session_outlives_the_engine_that_runs_its_turn(client: TacticClient) -> None:
    session = (await client.create_session()).session_id
    await client.append_context(session, text(2500), prefill=False)
    first = await chat(client, session, "What is this?", EVERYTHING, 16)
    home = worker_of(first)
    twin = (await client.fork_session(session)).session_id
    expected = await chat(client, twin, "And that?", EVERYTHING, STEPS)

    answer = Answer()
    events = client.chat("And that?", session_id=session, tactic=EVERYTHING, sampling=greedy(STEPS))
    async for event in events:
        answer.add(event)
        if isinstance(event, TurnStarted):
            victim = (await workers(client, DECODE))[event.worker_id]
        if isinstance(event, TextDelta) and victim and len(answer.token_ids) >= 10:
            assert victim.worker_id == home
            (await engine_process(victim.pid)).kill()
            restarts, victim = victim.restarts, None
    assert answer.token_ids == expected.token_ids
    assert answer.usage.completion_tokens == STEPS

    back = await until(
        client,
        lambda now: now[home].restarts > restarts and now[home].state == WorkerState.WORKER_STATE_READY,
        timeout_s=400,
    )
    assert back[home].address
    after = await chat(client, session, "Once more?", EVERYTHING, 16)
    alone = await chat(client, twin, "Once more?", EVERYTHING, 16)
    assert after.token_ids == alone.token_ids

    # The clustering worker has let go of the old engine's memory, and works in the new one's.
    async with asyncio.timeout(240):
        stats = back[home].stats
        while not stats.refreshes_published:
            asked = (complete(client, prompt(n), EVERYTHING, greedy(STEPS)) for n in LENGTHS)
            await asyncio.gather(*asked)
            stats = (await workers(client, DECODE))[home].stats
    assert stats.refreshes_in_place == stats.refreshes_published
