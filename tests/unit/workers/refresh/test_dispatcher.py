"""Jobs on real Ray actors: order, limits, and actors that die, hang, raise or lie."""

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from msgspec.structs import replace

from tactic.workers.config import RefreshConfig
from tactic.workers.refresh import dispatcher as module
from tactic.workers.refresh import messages
from tactic.workers.refresh.clustering import ClusteringWorker
from tactic.workers.refresh.dispatcher import QUEUED_PER_ACTOR, RefreshDispatcher
from tactic.workers.refresh.messages import Piece, RefreshJob, RefreshReply
from tactic.workers.refresh.pools import SharedPools
from tactic.workers.refresh.verify import describe, faults, unflatten
from tactic.workers.refresh.worker import CONTROL

CLUSTER, POSITIONS = 16, 64
KEYS = torch.randn(2, 2, POSITIONS, 8, generator=torch.Generator().manual_seed(5))


class GatedWorker(ClusteringWorker):
    """Does a job only once a file of the job's name is there, as it says; leaves a note when it begins."""

    def __init__(self, directory: Path) -> None:
        super().__init__(RefreshConfig())
        self._directory = directory

    def cluster(self, jobs: Any, frames: Any) -> Any:
        with (self._directory / "calls").open("a") as log:
            log.write(" ".join(str(job.job_id) for job in jobs) + "\n")
        host, pid = next(results := super().cluster(jobs, frames))
        passport = self._directory / "passport"
        yield host, int(passport.read_text()) if passport.exists() else pid
        yield from results

    def cluster_one(self, job: RefreshJob, frames: Any) -> Any:
        with (self._directory / "begun").open("a") as log:
            log.write(f"{job.job_id} {os.getpid()}\n")
        order = self._directory / str(job.job_id)
        while not order.exists():
            time.sleep(0.005)
        if order.read_text() == "raise":
            raise ValueError("no luck")
        reply, result = super().cluster_one(job, frames)
        return reply, [np.zeros_like(frame) for frame in result] if order.read_text() == "lie" else result


class Desk:
    """Jobs and the files that open the gates to them, and the answers that came."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.answers: asyncio.Queue[tuple[RefreshReply, list[Any]]] = asyncio.Queue()
        self.first = 1 + max((number for number, _ in self.begun()), default=0)

    def job(self, number: int, tail: int = 0) -> tuple[RefreshJob, list[bytes]]:
        """Job `number` of this test; actors, which tests share, know it by another number."""
        specs, frames = messages.pack([KEYS])
        pieces = (Piece(0, POSITIONS, 0),)
        job = RefreshJob(self.first + number, 3, "", pieces, CLUSTER, 1, tail, b"", tensors=specs)
        return job, [bytes(frame) for frame in frames]

    def job_in_place(self, number: int, pools: Any, shared: SharedPools) -> RefreshJob:
        """The same for the keys of a new request in `pools`, whose clusters go to its first free unit."""
        pools.admit(0)
        pools.decode(0, POSITIONS)
        (segment,) = pools.store.reserve([(0, pools.context(0))], read_at=pools.clock.now)
        slots = pools.context(0).numpy().tobytes()
        piece = Piece(0, POSITIONS, segment.unit)
        return RefreshJob(self.first + number, 3, "", (piece,), pools.CLUSTER, 1, 0, slots, shared)

    async def on_reply(self, rank: int, reply: RefreshReply, frames: list[Any]) -> None:
        assert rank == 3
        await self.answers.put((reply, frames))

    async def answer(self) -> tuple[int, str, RefreshReply, list[Any]]:
        """(Job, error, reply, frames) of the next answer."""
        async with asyncio.timeout(120):
            reply, frames = await self.answers.get()
        return reply.job_id - self.first, reply.error, reply, frames

    async def reply(self) -> RefreshReply:
        """The next answer alone."""
        return (await self.answer())[2]

    async def outcomes(self, count: int) -> list[tuple[int, str]]:
        """(Job, error) of the next answers."""
        return [(await self.answer())[:2] for _ in range(count)]

    def open(self, *numbers: int, order: str = "") -> None:
        for number in numbers:
            (self.directory / str(self.first + number)).write_text(order)

    def begun(self) -> list[tuple[int, int]]:
        """(Number, process) of all jobs in the order of their beginning."""
        log = self.directory / "begun"
        lines = log.read_text().splitlines() if log.exists() else []
        return [(int(number), int(pid)) for number, pid in (line.split() for line in lines)]

    def calls(self) -> list[list[int]]:
        """Numbers of the jobs in each call to an actor."""
        lines = (self.directory / "calls").read_text().splitlines()
        calls = [[int(number) - self.first for number in line.split()] for line in lines]
        return [call for call in calls if call[0] >= 0]

    async def until_begun(self, count: int) -> list[tuple[int, int]]:
        """(Job, process) in the order of their beginning, once there are `count`."""
        async with asyncio.timeout(120):
            while len(own := [(n - self.first, pid) for n, pid in self.begun() if n >= self.first]) < count:
                await asyncio.sleep(0.01)
        return own


Dispatch = Callable[..., Awaitable[RefreshDispatcher]]


@pytest.fixture(scope="module")
def actors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[Any]]]:
    """Two actors that all tests share, as they take long to start, and the directory of their gates."""
    directory = tmp_path_factory.mktemp("gates")
    ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    kind = ray.remote(concurrency_groups={CONTROL: 1})(GatedWorker).options(num_cpus=0, max_restarts=-1)
    yield directory, [kind.remote(directory) for _ in range(2)]
    ray.shutdown()


@pytest.fixture
def desk(actors: tuple[Path, list[Any]]) -> Desk:
    return Desk(actors[0])


@pytest.fixture
async def dispatch(actors: tuple[Path, list[Any]], desk: Desk) -> AsyncIterator[Dispatch]:
    """Starts a dispatcher over some of the actors, once they are up."""
    started: list[RefreshDispatcher] = []

    async def start(count: int = 1, *, timeout_s: float = 120) -> RefreshDispatcher:
        chosen = actors[1][:count]
        for actor in chosen:
            await answers(actor)
        started.append(RefreshDispatcher(chosen, timeout_s, desk.on_reply))
        started[-1].start()
        return started[-1]

    yield start
    for dispatcher in started:
        await dispatcher.stop()


async def answers(actor: Any) -> dict[str, int]:
    async with asyncio.timeout(120):
        while True:
            try:
                snapshot: dict[str, int] = await actor.snapshot.remote()
            except ray.exceptions.RayActorError:
                await asyncio.sleep(0.05)
            else:
                return snapshot


def fault_of(reply: RefreshReply, frames: list[Any]) -> str:
    """What the scheduler finds wrong with an answer."""
    tensors = messages.unpack(reply.tensors, frames)
    (clusters,) = unflatten(tensors, [POSITIONS], CLUSTER, KEYS.flatten(0, 1))
    return describe(faults(clusters)[None])


async def test_an_answer_is_what_the_scheduler_can_publish(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch()
    desk.open(1)
    await dispatcher.submit(*desk.job(1))
    number, error, reply, frames = await desk.answer()
    assert (number, error) == (1, "")
    assert not fault_of(reply, frames)


async def test_the_longest_tail_goes_first(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch()
    await dispatcher.submit(*desk.job(1))
    await desk.until_begun(1)
    for number, tail in ((2, 10), (3, 500), (4, 10), (5, 90)):
        await dispatcher.submit(*desk.job(number, tail))
    desk.open(1, 2, 3, 4, 5)
    assert await desk.outcomes(5) == [(1, ""), (3, ""), (5, ""), (2, ""), (4, "")]


async def test_what_waits_goes_in_one_call(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch()
    await dispatcher.submit(*desk.job(1))
    await desk.until_begun(1)
    for number in (2, 3, 4):
        await dispatcher.submit(*desk.job(number))
    desk.open(1, 2, 4)
    desk.open(3, order="raise")
    # One that fails spoils nothing for the others of its call, and is tried once more.
    assert await desk.outcomes(4) == [(1, ""), (2, ""), (4, ""), (3, "actor_error")]
    assert desk.calls() == [[1], [2, 3, 4], [3]]


async def test_answers_do_not_wait_for_the_rest_of_the_call(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch()
    await dispatcher.submit(*desk.job(1))
    await desk.until_begun(1)
    for number in (2, 3):
        await dispatcher.submit(*desk.job(number))
    desk.open(1, 2)
    assert await desk.outcomes(2) == [(1, ""), (2, "")]
    ((_, _), (_, _), (last, victim)) = await desk.until_begun(3)
    assert last == 3
    os.kill(victim, signal.SIGKILL)
    await desk.until_begun(4)
    desk.open(3)
    assert await desk.outcomes(1) == [(3, "")]


async def test_waiting_for_the_jobs_of_others_is_not_counted(desk: Desk, dispatch: Dispatch) -> None:
    other, dispatcher = await dispatch(timeout_s=4), await dispatch(timeout_s=4)
    for number in (1, 2):
        await other.submit(*desk.job(number))
    first = (await desk.until_begun(1))[0][1]
    await dispatcher.submit(*desk.job(3))
    for number in (1, 2):
        await asyncio.sleep(2.5)
        desk.open(number)
    desk.open(3)
    assert sorted(await desk.outcomes(3)) == [(1, ""), (2, ""), (3, "")]
    assert {pid for _, pid in await desk.until_begun(3)} == {first}


async def test_an_actor_that_gives_no_sign_of_life_is_killed(
    actors: tuple[Path, list[Any]], desk: Desk, dispatch: Dispatch
) -> None:
    dispatcher = await dispatch(timeout_s=1)
    stopped = (await answers(actors[1][0]))["pid"]
    os.kill(stopped, signal.SIGSTOP)
    desk.open(1)
    await dispatcher.submit(*desk.job(1))
    assert await desk.outcomes(1) == [(1, "")]
    assert {pid for _, pid in await desk.until_begun(1)} != {stopped}


async def test_a_full_queue_says_busy(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch()
    await dispatcher.submit(*desk.job(1))
    await desk.until_begun(1)
    numbers = range(2, 2 + QUEUED_PER_ACTOR)
    for number in (*numbers, 99):
        await dispatcher.submit(*desk.job(number))
    assert await desk.outcomes(1) == [(99, "busy")]
    desk.open(1, *numbers)
    assert await desk.outcomes(1 + len(numbers)) == [(number, "") for number in (1, *numbers)]


async def test_without_actors_there_is_no_actor(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch(0)
    await dispatcher.submit(*desk.job(1))
    assert await desk.outcomes(1) == [(1, "no_actor")]


async def test_a_job_of_a_killed_actor_goes_to_another(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch(2)
    await dispatcher.submit(*desk.job(1))
    ((_, first),) = await desk.until_begun(1)
    os.kill(first, signal.SIGKILL)
    begun = await desk.until_begun(2)
    assert begun[1][0] == 1
    assert begun[1][1] != first
    desk.open(1)
    assert await desk.outcomes(1) == [(1, "")]


async def test_an_actor_that_restarts_takes_no_jobs_from_others(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch(2)
    for number in (1, 2):
        await dispatcher.submit(*desk.job(number))
    begun = await desk.until_begun(2)
    for number in range(3, 9):
        await dispatcher.submit(*desk.job(number))
    os.kill(dict(begun)[1], signal.SIGKILL)
    desk.open(*range(1, 9))
    assert sorted(await desk.outcomes(8)) == [(number, "") for number in range(1, 9)]


async def test_a_hanging_actor_is_killed_and_its_job_tried_again(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch(timeout_s=3)
    await dispatcher.submit(*desk.job(1))
    await desk.until_begun(1)
    begun = await desk.until_begun(2)
    desk.open(1)
    assert begun[0][0] == begun[1][0] == 1
    assert begun[0][1] != begun[1][1]
    assert await desk.outcomes(1) == [(1, "")]


async def test_a_job_that_fails_twice_is_given_up(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch()
    desk.open(1, order="raise")
    await dispatcher.submit(*desk.job(1))
    assert await desk.outcomes(1) == [(1, "actor_error")]
    assert [number for number, _ in await desk.until_begun(2)] == [1, 1]
    desk.open(2)
    await dispatcher.submit(*desk.job(2))
    assert await desk.outcomes(1) == [(2, "")]


async def test_frames_that_do_not_fit_the_job_are_the_jobs_failure(
    actors: tuple[Path, list[Any]], desk: Desk, dispatch: Dispatch
) -> None:
    dispatcher = await dispatch()
    failed = (await answers(actors[1][0]))["jobs_failed"]
    desk.open(1)
    job, frames = desk.job(1)
    await dispatcher.submit(job, [frames[0][:-4]])
    assert await desk.outcomes(1) == [(1, "actor_error")]
    assert (await answers(actors[1][0]))["jobs_failed"] == failed + 2


async def test_a_lying_actor_is_not_believed(desk: Desk, dispatch: Dispatch) -> None:
    dispatcher = await dispatch()
    desk.open(1, order="lie")
    await dispatcher.submit(*desk.job(1))
    _, error, reply, frames = await desk.answer()
    assert error == ""
    assert "do not cover" in fault_of(reply, frames)


async def test_an_actor_of_this_host_works_in_place(desk: Desk, dispatch: Dispatch, pools: Any) -> None:
    dispatcher = await dispatch()
    desk.open(1)
    job = desk.job_in_place(1, pools, pools.share())
    await dispatcher.submit(job, [])
    assert await desk.reply() == RefreshReply(job.job_id)
    assert not faults(pools.store.arena.read(job.pieces[0].unit, POSITIONS)).any()


async def test_an_actor_of_another_host_wants_keys(desk: Desk, dispatch: Dispatch, pools: Any) -> None:
    dispatcher = await dispatch()
    desk.open(1)
    job = desk.job_in_place(1, pools, replace(pools.share(), host="another"))
    await dispatcher.submit(job, [])
    assert "another host" in (await desk.reply()).keys_wanted
    sent, frames = desk.job(1)
    await dispatcher.submit(replace(job, tensors=sent.tensors), frames)
    number, error, reply, result = await desk.answer()
    assert (number, error) == (1, "")
    assert not fault_of(reply, result)


async def test_a_killed_actor_is_dead_before_another_gets_its_memory(
    desk: Desk, dispatch: Dispatch, pools: Any
) -> None:
    dispatcher = await dispatch(2)
    await dispatcher.submit(desk.job_in_place(1, pools, pools.share()), [])
    ((_, first),) = await desk.until_begun(1)
    os.kill(first, signal.SIGKILL)
    await desk.until_begun(2)
    assert not Path(f"/proc/{first}").exists()
    desk.open(1)
    assert await desk.outcomes(1) == [(1, "")]


async def test_memory_of_a_process_that_does_not_end_is_held(
    desk: Desk, dispatch: Dispatch, pools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "END_S", 0.1)
    passport = desk.directory / "passport"
    with subprocess.Popen(["sleep", "600"]) as undead:
        passport.write_text(str(undead.pid))
        dispatcher = await dispatch()
        job = desk.job_in_place(1, pools, pools.share())
        await dispatcher.submit(job, [])
        ((_, actor),) = await desk.until_begun(1)
        passport.unlink()
        os.kill(actor, signal.SIGKILL)
        assert await desk.reply() == RefreshReply(job.job_id, error="actor_died", held=True)
        desk.open(2)
        await dispatcher.submit(*desk.job(2))
        assert await desk.outcomes(1) == [(2, "")]
        undead.kill()
    assert await desk.reply() == RefreshReply(job.job_id, error="actor_died")
