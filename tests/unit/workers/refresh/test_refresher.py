"""The scheduler's half of a refresh, over a real link, with real k-means on the other side."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from actor import Actor
from late import LateDeferred
from msgspec.structs import replace

from tactic.workers.config import RefreshConfig
from tactic.workers.decode.hub import SchedulerHub
from tactic.workers.index.segment import Segment
from tactic.workers.refresh import messages
from tactic.workers.refresh.compute import flatten
from tactic.workers.refresh.deferred import Deferred
from tactic.workers.refresh.link import SchedulerLink
from tactic.workers.refresh.messages import RefreshJob, RefreshReply
from tactic.workers.refresh.refresher import MOST_SEGMENTS, Refresher

INTERVAL = 64


class Late(LateDeferred):
    """A device that comes to what is queued when the test says so."""

    def __init__(self) -> None:
        super().__init__(lambda: self.reached)
        self.reached = False


@dataclass
class Bench:
    """A refresher and the far end of its link, where the test plays the decode worker."""

    pools: Any
    refresher: Refresher
    hub: SchedulerHub
    jobs: "asyncio.Queue[tuple[RefreshJob, list[bytes]]]"
    actor: Actor

    def decode(self, slot: int, count: int) -> None:
        """Decode steps as the runtime counts them: each writes a position, then the next step begins."""
        for _ in range(count):
            self.pools.decode(slot)
            self.refresher.step(slot, self.pools.row(slot), self.pools.lengths[slot])

    async def job(self) -> tuple[RefreshJob, list[bytes]]:
        async with asyncio.timeout(10):
            return await self.jobs.get()

    async def answer(
        self, job: RefreshJob, frames: list[bytes], spoil: Callable[[list[torch.Tensor]], None] | None = None
    ) -> list[tuple[int, str]]:
        """Does a job and publishes its result; what `poll` says."""
        reply, views = self.actor.answer(job, frames, spoil)
        return await self.reply(reply, [np.frombuffer(view, np.uint8) for view in views])

    async def reply(self, reply: RefreshReply, frames: Any = ()) -> list[tuple[int, str]]:
        await self.hub.reply(0, reply, list(frames))
        async with asyncio.timeout(10):
            while not (ended := self.ended()):
                await asyncio.sleep(0.001)
        self.pools.check()
        return ended

    def ended(self) -> list[tuple[int, str]]:
        """(request slot, reason) of what ended."""
        return [(slot, reason) for slot, _, reason in self.refresher.poll()]


MakeBench = Callable[..., Bench]


@pytest.fixture(params=[True, False], ids=["in-place", "sent"])
def in_place(request: pytest.FixtureRequest) -> bool:
    """Whether clustering actors can map the pools."""
    return bool(request.param)


@pytest.fixture
async def make_bench(make_pools: Callable[..., Any], in_place: bool) -> AsyncIterator[MakeBench]:
    opened: list[Any] = []

    def make(
        scope: str = "tail", interval: int = INTERVAL, deferred: Deferred | None = None, **sizes: int
    ) -> Bench:
        pools = make_pools(**sizes)
        hub = SchedulerHub(ranks=1)
        jobs: asyncio.Queue[tuple[RefreshJob, list[bytes]]] = asyncio.Queue()

        async def on_job(job: RefreshJob, frames: list[bytes]) -> None:
            await jobs.put((job, frames))

        hub.start(on_job)
        link = SchedulerLink(hub.address, rank=0)
        opened.extend((link, hub))
        refresher = Refresher(
            pools.store,
            link,
            RefreshConfig(interval=interval, scope=scope),
            rank=0,
            cluster_size=pools.CLUSTER,
            pools=pools.share() if in_place else None,
            read_keys=pools.read_keys,
            slots_of=pools.slots_of,
            deferred=deferred or Deferred(torch.device("cpu")),
        )
        return Bench(pools, refresher, hub, jobs, Actor())

    yield make
    for end in opened:
        if isinstance(end, SchedulerLink):
            end.close()
        else:
            await end.stop()


async def asked(bench: Bench, prompt: int = 104) -> tuple[RefreshJob, list[bytes]]:
    """A request with a whole segment and an open one decodes until it asks for a refresh."""
    bench.pools.admit(0)
    bench.pools.prefill(0, prompt)
    bench.decode(0, INTERVAL)
    return await bench.job()


async def test_tail_scope_clusters_the_open_run_and_the_tail(make_bench: MakeBench) -> None:
    bench = make_bench()
    job, frames = await asked(bench)
    assert [(p.offset, p.length, p.warm_unit) for p in job.pieces] == [(0, 64, None), (64, 40, None)]
    assert job.tail == INTERVAL
    kept = bench.pools.row(0).segments[0]
    assert await bench.answer(job, frames) == [(0, "")]
    row = bench.pools.row(0)
    assert row.segments[0] is kept
    assert [(s.start, s.length) for s in row.segments] == [(0, 64), (64, 64), (128, 40)]
    assert (row.version, bench.refresher.published) == (2, 1)


async def test_full_scope_clusters_everything_and_starts_warm(make_bench: MakeBench) -> None:
    bench = make_bench(scope="full")
    job, frames = await asked(bench, prompt=2 * 64 + 40)
    first, second, _ = bench.pools.row(0).segments
    assert [(p.offset, p.length, p.warm_unit) for p in job.pieces] == [
        (0, 64, first.unit),
        (64, 64, second.unit),
        (128, 64, None),
        (192, 40, None),
    ]
    if frames:
        _, *old = messages.unpack(job.tensors, frames)
        for sent, segment in zip(old, (first, second), strict=True):
            assert torch.equal(sent, bench.pools.store.arena.read(segment.unit, 64).centroids)
    assert await bench.answer(job, frames) == [(0, "")]
    assert [(s.start, s.length) for s in bench.pools.row(0).segments] == [
        (0, 64),
        (64, 64),
        (128, 64),
        (192, 40),
    ]


async def test_refresh_after_refresh_follows_the_context(make_bench: MakeBench) -> None:
    bench = make_bench()
    bench.pools.admit(0)
    bench.pools.prefill(0, 40)
    for version in range(2, 6):
        bench.decode(0, INTERVAL)
        assert await bench.answer(*await bench.job()) == [(0, "")]
        row = bench.pools.row(0)
        assert row.version == version
        assert row.clustered_length == bench.pools.lengths[0]
    assert bench.refresher.published == 4


async def test_a_long_run_of_short_segments_is_clustered_in_parts(make_bench: MakeBench) -> None:
    """A job that takes longer than its timeout would never be done, and its keys may need much memory."""
    bench = make_bench()
    pools, most = bench.pools, MOST_SEGMENTS * bench.pools.SEGMENT
    pools.admit(0)
    pools.prefill(0, 64)
    for _ in range(8):
        pools.prefill(0, 40)
    bench.decode(0, INTERVAL)
    parts, rest = [], True
    while rest:
        job, frames = await bench.job()
        parts.append([piece.length for piece in job.pieces])
        assert await bench.answer(job, frames) == [(0, "")]
        rest = pools.lengths[0] - pools.row(0).clustered_length >= pools.MIN_TOKENS
        if rest:
            bench.decode(0, INTERVAL // 4)
    assert parts[:2] == [[64, 56], [64, 32]], "old segments are replaced as a whole"
    assert all(sum(part) <= most for part in parts)
    assert {segment.length for segment in pools.row(0).segments[:-1]} == {64}


async def test_a_rest_too_short_to_be_worth_it_is_no_gap(make_bench: MakeBench) -> None:
    """Whole segments and a few positions more, of a job that does not come to the end of the row."""
    bench = make_bench()
    bench.pools.admit(0)
    for length in (40, 40, 60):
        bench.pools.prefill(0, length)
    bench.decode(0, INTERVAL)
    job, frames = await bench.job()
    assert [(p.offset, p.length) for p in job.pieces] == [(0, 64), (64, 16)]
    assert await bench.answer(job, frames) == [(0, "")]


async def test_keys_for_which_there_is_no_memory_are_not_sent(
    make_bench: MakeBench, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench()

    def fail(slots: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench.refresher, "_read_keys", fail)
    bench.pools.admit(0)
    bench.pools.prefill(0, 104)
    units = bench.pools.store.units_used
    bench.decode(0, INTERVAL)
    if in_place:
        job, _ = await bench.job()
        wanted = RefreshReply(job.job_id, keys_wanted="the pools are on another host")
        assert await bench.reply(wanted) == [(0, "keys_memory")]
    else:
        assert bench.ended() == [(0, "keys_memory")]
    assert bench.pools.store.units_used == units, "what was reserved is free again"


async def test_a_request_with_nothing_to_cluster_does_not_ask(make_bench: MakeBench) -> None:
    bench = make_bench(interval=8)
    bench.pools.admit(0)
    bench.decode(0, 31)
    assert bench.refresher.requested == 0
    bench.decode(0, 1)
    await bench.job()
    assert bench.refresher.requested == 1


async def test_one_refresh_at_a_time(make_bench: MakeBench) -> None:
    bench = make_bench()
    job, frames = await asked(bench)
    bench.decode(0, 3 * INTERVAL)
    assert bench.refresher.requested == 1
    assert await bench.answer(job, frames) == [(0, "")]
    # It is long overdue: the next step asks, for all that has come since.
    bench.decode(0, 1)
    job, frames = await bench.job()
    assert job.tail == 3 * INTERVAL + 1
    assert await bench.answer(job, frames) == [(0, "")]


async def test_steps_of_several_requests_are_counted_apart(make_bench: MakeBench) -> None:
    bench = make_bench()
    for slot in (0, 1):
        bench.pools.admit(slot)
        bench.pools.prefill(slot, 104)
    bench.decode(0, INTERVAL)
    bench.decode(1, INTERVAL)
    first, second = await bench.job(), await bench.job()
    assert await bench.answer(*second) == [(1, "")]
    assert await bench.answer(*first) == [(0, "")]


async def test_request_ended(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench)
    bench.pools.store.release(0)
    assert await bench.answer(*job) == [(0, "request_ended")]


async def test_request_ended_and_another_has_its_slot(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench)
    context = bench.pools.context(0)
    row = bench.pools.admit(0, context)
    assert await bench.answer(*job) == [(0, "request_ended")]
    assert (row.version, row.clustered_length) == (1, 104)
    bench.decode(0, INTERVAL)
    assert await bench.answer(*await bench.job()) == [(0, "")]


async def test_index_changed(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench)
    pools, row = bench.pools, bench.pools.row(0)
    (other,) = pools.store.reserve([(64, pools.read_slots(0, 64, 104))], read_at=pools.clock.now)
    pools.build([other])
    pools.store.swap(0, row, row.segments[1:], [other])
    assert await bench.answer(*job) == [(0, "index_changed")]
    assert row.segments[1] is other


async def test_index_changed_by_growth_alone(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench, prompt=128)  # nothing open, so nothing is replaced
    bench.pools.prefill(0, 0)
    assert bench.pools.row(0).clustered_length == 192
    assert await bench.answer(*job) == [(0, "index_changed")]


async def test_slots_moved(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench)
    # The prefix cache has found the same token elsewhere and points the request there.
    pools = bench.pools
    old = int(pools.req_to_token[0, 130])
    pools.req_to_token[0, 130] = pools.write(1)
    pools.keys[:, int(pools.req_to_token[0, 130])] = pools.keys[:, old]
    assert await bench.answer(*job) == [(0, "slots_moved")]


async def test_slots_rewritten(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench)
    bench.pools.clock.tick(bench.pools.req_to_token[0, 120:121].long())
    assert await bench.answer(*job) == [(0, "slots_rewritten")]


async def test_slots_before_the_refreshed_part_may_move(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench)
    pools = bench.pools
    old = int(pools.req_to_token[0, 3])
    pools.req_to_token[0, 3] = pools.write(1)
    pools.keys[:, int(pools.req_to_token[0, 3])] = pools.keys[:, old]
    assert await bench.answer(*job) == [(0, "")]


@pytest.mark.parametrize("tensor", range(10))
async def test_invalid_result_is_not_published(make_bench: MakeBench, tensor: int) -> None:
    bench = make_bench()
    job = await asked(bench)
    before = list(bench.pools.row(0).segments)
    units = bench.pools.store.units_used

    def spoil(tensors: list[torch.Tensor]) -> None:
        tensors[tensor][0, 0] = torch.nan if tensors[tensor].is_floating_point() else -1

    assert await bench.answer(*job, spoil) == [(0, "invalid_result")]
    assert bench.pools.row(0).segments == before
    assert bench.pools.store.units_used == units - 2, "what was reserved is free again"


@pytest.mark.parametrize(
    ("spec", "frame"),
    [
        (messages.TensorSpec("float32", (3,)), bytes(8)),
        (messages.TensorSpec("no such type", (2,)), bytes(8)),
        (messages.TensorSpec("float32", (2,)), bytes(8)),
    ],
    ids=["size", "dtype", "count"],
)
async def test_bytes_that_are_no_result_do_not_harm(
    make_bench: MakeBench, spec: messages.TensorSpec, frame: bytes
) -> None:
    bench = make_bench()
    job, _ = await asked(bench)
    reply = RefreshReply(job.job_id, tensors=(spec,))
    assert await bench.reply(reply, [np.frombuffer(frame, np.uint8)]) == [(0, "invalid_result")]


async def test_an_answer_that_nobody_waits_for_is_ignored(make_bench: MakeBench) -> None:
    bench = make_bench()
    job = await asked(bench)
    await bench.hub.reply(0, RefreshReply(999, error="busy"), [])
    assert await bench.answer(*job) == [(0, "")]
    assert not bench.refresher.dropped


async def test_index_memory(make_bench: MakeBench) -> None:
    # 2 units hold the prompt, 1 is left; old and new are needed at once.
    bench = make_bench(units=3)
    bench.pools.admit(0)
    bench.pools.prefill(0, 104)
    bench.decode(0, INTERVAL)
    assert bench.refresher.poll() == [(0, bench.pools.generation[0], "index_memory")]
    assert (bench.refresher.requested, bench.pools.store.units_used) == (1, 2)
    bench.decode(0, INTERVAL // 4)
    assert bench.refresher.dropped == {"index_memory": 2}
    bench.pools.check()


async def test_table_full(make_bench: MakeBench) -> None:
    bench = make_bench(columns=2)
    job = await asked(bench)
    assert await bench.answer(*job) == [(0, "table_full")]
    assert bench.pools.row(0).version == 1


@pytest.mark.parametrize("error", ["busy", "timeout", "actor_died", "actor_error", "no_actor"])
async def test_a_failure_is_counted_and_tried_again_sooner(make_bench: MakeBench, error: str) -> None:
    bench = make_bench()
    job, _ = await asked(bench)
    assert await bench.reply(RefreshReply(job.job_id, error=error)) == [(0, error)]
    assert bench.refresher.dropped == {error: 1}
    bench.decode(0, INTERVAL // 4 - 1)
    assert bench.refresher.requested == 1
    bench.decode(0, 1)
    job, frames = await bench.job()
    assert job.tail == INTERVAL + INTERVAL // 4
    assert await bench.answer(job, frames) == [(0, "")]
    assert bench.pools.row(0).clustered_length == 104 + INTERVAL + INTERVAL // 4


def counts(bench: Bench) -> tuple[int, int]:
    return bench.refresher.published, bench.refresher.in_place


async def test_where_the_work_was_done_is_counted(make_bench: MakeBench, in_place: bool) -> None:
    bench = make_bench()
    job, frames = await asked(bench)
    assert (job.pools is not None, bool(frames)) == (in_place, not in_place)
    await bench.answer(job, frames)
    assert counts(bench) == (1, int(in_place))


async def test_both_ways_lead_to_the_same_index(make_bench: MakeBench) -> None:
    bench = make_bench(scope="full")
    job, frames = await asked(bench, prompt=2 * 64 + 40)
    there = replace(job, pools=bench.pools.share())
    await bench.answer(job, frames)
    sent = [clone(bench, segment) for segment in bench.pools.row(0).segments]
    bench.actor.answer(there, [])
    for segment, before in zip(bench.pools.row(0).segments, sent, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(clone(bench, segment), before, strict=True))


def clone(bench: Bench, segment: Segment) -> list[torch.Tensor]:
    return [t.clone() for t in flatten([bench.pools.store.arena.read(segment.unit, segment.length)])]


@pytest.mark.parametrize("in_place", [True], indirect=True)
class TestInPlace:
    """What can go wrong only where an actor has its hands in the index."""

    async def test_an_actor_that_cannot_map_the_pools_gets_the_keys(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        job, frames = await asked(bench)
        elsewhere = replace(job, pools=replace(job.pools, host="another"))
        reply, _ = bench.actor.answer(elsewhere, frames)
        assert "another host" in reply.keys_wanted
        await bench.hub.reply(0, reply, [])
        async with asyncio.timeout(10):
            while bench.jobs.empty():
                bench.ended()
                await asyncio.sleep(0.001)
        again, frames = await bench.job()
        assert (again.job_id, len(frames)) == (job.job_id, 1)
        elsewhere = replace(again, pools=replace(again.pools, host="another"))
        assert await bench.answer(elsewhere, frames) == [(0, "")]
        assert counts(bench) == (1, 0)

    async def test_keys_are_not_sent_for_a_request_that_ended(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        job, _ = await asked(bench)
        bench.pools.store.release(0)
        assert await bench.reply(RefreshReply(job.job_id, keys_wanted="why")) == [(0, "request_ended")]

    async def test_an_actor_that_only_says_that_it_is_done(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        # The same length has been clustered before in the memory that is reserved.
        for _ in range(2):
            job, _ = await asked(bench)
            bench.pools.store.release(0)
            assert await bench.answer(job, []) == [(0, "request_ended")]
        job, _ = await asked(bench)
        assert await bench.reply(RefreshReply(job.job_id)) == [(0, "invalid_result")]

    async def test_memory_that_may_still_be_written_is_held(self, make_bench: MakeBench) -> None:
        bench = make_bench(units=6)
        job, _ = await asked(bench)
        assert bench.pools.store.units_used == 4
        held = RefreshReply(job.job_id, error="timeout", held=True)
        assert await bench.reply(held) == [(0, "timeout")]
        assert bench.pools.store.units_used == 4
        bench.decode(0, INTERVAL // 4)
        # It asks again, in other memory; whatever the first one does now harms nobody.
        second, _ = await bench.job()
        assert {p.unit for p in second.pieces} & {p.unit for p in job.pieces} == set()
        assert await bench.answer(second, []) == [(0, "")]
        bench.actor.answer(job, [])
        bench.pools.check()
        await bench.hub.reply(0, RefreshReply(job.job_id, error="timeout"), [])
        async with asyncio.timeout(10):
            while bench.pools.store.units_used > 5:
                bench.ended()
                await asyncio.sleep(0.001)
        bench.pools.check()

    async def test_a_slot_rewritten_while_it_was_read(self, make_bench: MakeBench) -> None:
        bench = make_bench()
        job, frames = await asked(bench)
        at = bench.pools.req_to_token[0, 120:121].long()
        bench.pools.clock.tick(at)
        bench.pools.keys[:, at] += 1
        assert await bench.answer(job, frames) == [(0, "slots_rewritten")]


class TestADeviceThatIsBehind:
    async def answered(self, bench: Bench, late: Late) -> None:
        """A job's answer has been received, and is being looked at."""
        late.reached = True
        bench.pools.admit(0)
        bench.pools.prefill(0, 104)
        bench.decode(0, INTERVAL)
        while late.queued:
            assert bench.ended() == []
        reply, views = bench.actor.answer(*await bench.job())
        late.reached = False
        await bench.hub.reply(0, reply, [np.frombuffer(view, np.uint8) for view in views])
        async with asyncio.timeout(10):
            while not late.queued:
                assert bench.ended() == []
                await asyncio.sleep(0.001)

    async def test_nothing_is_published_before_it_was_looked_at(self, make_bench: MakeBench) -> None:
        bench = make_bench(deferred=(late := Late()))
        await self.answered(bench, late)
        assert bench.ended() == []
        assert bench.pools.row(0).version == 1
        late.reached = True
        assert bench.ended() == [(0, "")]
        bench.pools.check()

    async def test_positions_that_were_taken_over_meanwhile(self, make_bench: MakeBench) -> None:
        bench = make_bench(deferred=(late := Late()))
        await self.answered(bench, late)
        bench.pools.row(0).takeovers += 1
        late.reached = True
        assert bench.ended() == [(0, "slots_moved")]
        bench.pools.check()

    async def test_a_request_that_ended_meanwhile(self, make_bench: MakeBench) -> None:
        bench = make_bench(deferred=(late := Late()))
        await self.answered(bench, late)
        bench.pools.store.release(0)
        late.reached = True
        assert bench.ended() == [(0, "request_ended")]
        bench.pools.check()

    async def test_a_request_that_ended_before_memory_was_reserved(self, make_bench: MakeBench) -> None:
        bench = make_bench(deferred=(late := Late()))
        bench.pools.admit(0)
        bench.pools.prefill(0, 104)
        bench.decode(0, INTERVAL)
        units = bench.pools.store.units_used
        bench.pools.store.release(0)
        late.reached = True
        assert bench.ended() == [(0, "request_ended")]
        assert bench.pools.store.units_used == units
        bench.pools.check()
