import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tactic.workers.decode.hub import KEPT_REPORTS, SchedulerHub
from tactic.workers.refresh.link import SchedulerLink
from tactic.workers.refresh.messages import Drift, Gauges, Hello, RefreshJob, RefreshReply, RequestReport


async def no_job(job: RefreshJob, frames: list[bytes]) -> None:
    raise AssertionError("no job was sent")


@pytest.fixture
async def line() -> AsyncIterator[tuple[SchedulerHub, list[SchedulerLink]]]:
    """A hub with two ranks."""
    hub = SchedulerHub(ranks=2)
    hub.start(no_job)
    links = [SchedulerLink(hub.address, rank) for rank in range(2)]
    yield hub, links
    for link in links:
        link.close()
    await hub.stop()


Line = tuple[SchedulerHub, list[SchedulerLink]]


def hello(rank: int) -> Hello:
    return Hello(rank, 1000, 30)


def report(rank: int, request_id: str) -> RequestReport:
    return RequestReport(rank, request_id, 1, 0, 10, [1.0], None, None, [1], 0, 0, 0, 0)


async def test_all_ranks_must_say_hello(line: Line) -> None:
    hub, links = line
    links[0].send(hello(0))
    with pytest.raises(TimeoutError):
        await hub.wait_hello(0.2)
    links[1].send(hello(1))
    assert {h.rank for h in await hub.wait_hello(10)} == {0, 1}


async def test_a_line_that_stands_leaves_no_file(line: Line) -> None:
    """So that a killed worker does not either; what is connected stays so."""
    hub, links = line
    for rank, link in enumerate(links):
        link.send(hello(rank))
    await hub.wait_hello(10)
    assert not Path(hub.address.removeprefix("ipc://")).parent.exists()
    waiting = asyncio.create_task(hub.take_reports("a", stays=1, timeout_s=10))
    for rank, link in enumerate(links):
        link.send(report(rank, "a"))
    assert len(await waiting) == 2


async def test_a_report_is_complete_when_every_rank_told_of_every_stay(line: Line) -> None:
    hub, links = line
    waiting = asyncio.create_task(hub.take_reports("a", stays=2, timeout_s=10))
    for message in (report(0, "a"), report(0, "b"), report(0, "a")):
        links[0].send(message)
    links[1].send(report(1, "a"))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    links[1].send(report(1, "a"))
    assert sorted(r.rank for r in await waiting) == [0, 0, 1, 1]
    assert len(await hub.take_reports("b", stays=1, timeout_s=0.05)) == 1
    assert await hub.take_reports("a", stays=1, timeout_s=0.05) == []


async def test_the_latest_gauges_of_each_rank_are_kept(line: Line) -> None:
    hub, links = line
    for used in (1, 2, 3):
        links[1].send(Gauges(1, used, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, {}, Drift()))
    links[1].send(hello(1))
    links[0].send(hello(0))
    await hub.wait_hello(10)
    assert {rank: gauges.kv_tokens_used for rank, gauges in hub.gauges.items()} == {1: 3}


async def test_reports_that_nobody_takes_do_not_pile_up(line: Line) -> None:
    hub, links = line
    for number in range(KEPT_REPORTS + 5):
        links[0].send(report(0, str(number)))
    for rank, link in enumerate(links):
        link.send(hello(rank))
    await hub.wait_hello(10)
    assert await hub.take_reports("4", stays=1, timeout_s=0.01) == []
    last = str(KEPT_REPORTS + 4)
    assert [r.request_id for r in await hub.take_reports(last, stays=1, timeout_s=0.01)] == [last]


async def test_jobs_are_handed_on_and_answers_reach_their_rank() -> None:
    hub = SchedulerHub(ranks=1)
    jobs: asyncio.Queue[tuple[RefreshJob, list[bytes]]] = asyncio.Queue()

    async def take(job: RefreshJob, frames: list[bytes]) -> None:
        await jobs.put((job, frames))

    hub.start(take)
    link = SchedulerLink(hub.address, rank=0)
    sent = RefreshJob(5, 0, "request", (), 32, 1, 9, b"slots")
    link.send(sent, [memoryview(b"keys"), memoryview(b"more")])
    job, frames = await asyncio.wait_for(jobs.get(), 10)
    assert (job, frames) == (sent, [b"keys", b"more"])
    # A rank that is not there (any more) is no trouble.
    await hub.reply(7, RefreshReply(1, error="busy"), [])
    await hub.reply(0, RefreshReply(5, error="busy"), [])
    async with asyncio.timeout(10):
        while not (received := list(link.receive())):
            await asyncio.sleep(0.001)
    assert received == [(RefreshReply(5, error="busy"), [])]
    link.close()
    await hub.stop()
