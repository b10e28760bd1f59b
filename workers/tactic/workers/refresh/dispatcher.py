"""The decode worker's half of a refresh: brings jobs to clustering actors and answers back."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from tactic.workers.refresh import mps
from tactic.workers.refresh.clustering import Begun
from tactic.workers.refresh.messages import Frames, RefreshJob, RefreshReply
from tactic.workers.refresh.worker import CONTROL
from tactic.workers.sharing.host import host_identity
from tactic.workers.sharing.process import Process

logger = logging.getLogger(__name__)

ATTEMPTS = 2
QUEUED_PER_ACTOR = 4
BATCH_JOBS = 4
"""Most jobs in one call to an actor."""
RESTART_POLL_S = 0.2
END_S = 10.0
"""Longest that a killed actor's process is waited for before its jobs are answered."""
DRAIN_S = 1.0
"""Under MPS, kernels of a process that was killed run to their end after it; those of k-means take ms."""

Reply = Callable[[int, RefreshReply, Frames], Awaitable[None]]


@dataclass(order=True, frozen=True, slots=True)
class _Queued:
    """A job in the queue, which is ordered by the age of the tails, then by arrival."""

    newness: int
    order: int
    job: RefreshJob = field(compare=False)
    frames: Frames = field(compare=False)
    attempts: int = field(compare=False, default=ATTEMPTS)


class _GivenUpError(Exception):
    """The actor will not finish its call.

    Args:
        reason: as in RefreshReply.error.
        writer: its process, if that may have mapped the ranks' pools and is not known to have ended.
    """

    def __init__(self, reason: str, writer: Process | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.writer = writer


class RefreshDispatcher:
    """Queues jobs by the age of their tails, longest first, and runs several in one call to an actor.

    An actor that dies or takes too long costs the job it was at one attempt; what is left of the call goes
    to whoever is free. A queue that is full answers "busy": the index stays as it is and the request asks
    again later.

    Args:
        actors: handles of ClusteringWorker actors; Ray restarts them, so the handles stay good.
        timeout_s: longest that an actor may take for a job once it is at it; waiting for other decode
            workers' jobs does not count. The actor is killed then, and restarted by Ray; one that gives no
            sign of life at all is found out within twice that time.
        reply: sends an answer to a rank.
        ranks: of the engine; each asks for its own heads.
    """

    def __init__(self, actors: Sequence[Any], timeout_s: float, reply: Reply, *, ranks: int = 1) -> None:
        self._actors = list(actors)
        self._timeout_s = timeout_s
        self._reply = reply
        self._order = itertools.count()
        self._queue: asyncio.PriorityQueue[_Queued] = asyncio.PriorityQueue(
            QUEUED_PER_ACTOR * len(self._actors) * ranks
        )
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to serve the queue, on the running event loop."""
        self._tasks = [asyncio.create_task(self._serve(actor)) for actor in self._actors]

    async def stop(self) -> None:
        """Gives up all jobs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def submit(self, job: RefreshJob, frames: Sequence[bytes]) -> None:
        """Queues a job, or answers at once that it can't be done now."""
        if not self._actors:
            await self._fail(job, "no_actor")
            return
        arrays = [np.frombuffer(frame, np.uint8) for frame in frames]
        await self._put(_Queued(-job.tail, next(self._order), job, arrays), "busy")

    async def _serve(self, actor: Any) -> None:
        while True:
            batch = await self._take()
            try:
                await self._run(actor, batch)
            except _GivenUpError as error:
                if error.writer is None or await _silent(error.writer, batch, END_S):
                    await self._again(batch, error.reason)
                else:
                    await self._hold(batch, error.reason, error.writer)
                await self._answers(actor)

    async def _again(self, batch: list[_Queued], reason: str) -> None:
        """Jobs that an actor was given go back to the queue; it was at the first."""
        await self._retry(batch[0], reason)
        for queued in batch[1:]:
            await self._put(queued, reason)

    async def _hold(self, batch: list[_Queued], reason: str, writer: Process) -> None:
        """Answers jobs into whose memory a process may still write, and once more when it can't."""

        async def release() -> None:
            await _silent(writer, batch, None)
            for queued in batch:
                await self._fail(queued.job, reason)

        logger.error("process %d was killed, but does not end", writer.pid)
        for queued in batch:
            await self._fail(queued.job, reason, held=True)
        self._tasks.append(asyncio.create_task(release()))

    async def _take(self) -> list[_Queued]:
        """The oldest tails: this actor's part of what waits, at least one."""
        batch = [await self._queue.get()]
        part = self._queue.qsize() // len(self._actors)
        batch += [self._queue.get_nowait() for _ in range(min(part, BATCH_JOBS - 1))]
        return batch

    async def _run(self, actor: Any, batch: list[_Queued]) -> None:
        """Runs jobs on an actor, sends the answers, and takes from `batch` what is done.

        Raises:
            _GivenUpError: the actor died or hangs; the first of `batch` is the job that it was at.
        """
        process = None
        try:
            # One answer at a time: the actor writes nothing before it is known who it is.
            call = actor.cluster.options(
                num_returns="streaming", _generator_backpressure_num_objects=1
            ).remote([queued.job for queued in batch], [queued.frames for queued in batch])
            host, pid = await self._until_begun(actor, call)
            process = Process(pid) if host == host_identity() else None
            while batch:
                async with asyncio.timeout(self._timeout_s):
                    result = await (await anext(call))
                queued = batch.pop(0)
                if result is None:
                    await self._retry(queued, "actor_error")
                else:
                    await self._reply(queued.job.rank, *result)
        except TimeoutError:
            if process is None:
                ray.kill(actor, no_restart=False)
            else:
                await asyncio.to_thread(mps.end_client, process.pid)
                process.kill()
            raise _GivenUpError("timeout", process) from None
        except (ray.exceptions.RayActorError, ProcessLookupError):
            raise _GivenUpError("actor_died", process) from None
        except ray.exceptions.RayError as error:
            logger.exception("clustering actor failed")
            raise _GivenUpError("actor_error") from error

    async def _until_begun(self, actor: Any, call: Any) -> Begun:
        """Waits while the actor is at other decode workers' jobs; says who it is.

        Raises:
            TimeoutError: it is at one for too long, or gives no sign of life.
        """
        begun = asyncio.ensure_future(anext(call))
        try:
            while not (await asyncio.wait([begun], timeout=self._timeout_s))[0]:
                async with asyncio.timeout(self._timeout_s):
                    snapshot = await actor.snapshot.options(concurrency_group=CONTROL).remote()
                if snapshot["busy_ms"] > 1000 * self._timeout_s:
                    raise TimeoutError
            who: Begun = await (await begun)
            return who
        finally:
            begun.cancel()

    async def _answers(self, actor: Any) -> None:
        """Waits until an actor is there (again), so that it takes no jobs from others only to fail them."""
        while True:
            try:
                # Behind its jobs: a process that is about to be killed at one must not answer any more.
                await actor.snapshot.remote()
            except ray.exceptions.RayError:
                await asyncio.sleep(RESTART_POLL_S)
            else:
                return

    async def _retry(self, queued: _Queued, reason: str) -> None:
        job = queued.job
        logger.warning(
            "refresh job %d of rank %d, for request %s, failed: %s",
            job.job_id,
            job.rank,
            job.request_id,
            reason,
        )
        if queued.attempts > 1:
            await self._put(replace(queued, attempts=queued.attempts - 1), reason)
        else:
            await self._fail(job, reason)

    async def _put(self, queued: _Queued, reason: str) -> None:
        """Queues a job; where there is no room, that is answered for `reason`."""
        try:
            self._queue.put_nowait(queued)
        except asyncio.QueueFull:
            await self._fail(queued.job, reason)

    async def _fail(self, job: RefreshJob, reason: str, *, held: bool = False) -> None:
        await self._reply(job.rank, RefreshReply(job.job_id, error=reason, held=held), [])


async def _silent(writer: Process, batch: list[_Queued], timeout_s: float | None) -> bool:
    """Waits until nothing of a process writes for the jobs any more; False if it has not ended in time."""
    ended = await writer.ended(timeout_s)
    if ended and any(queued.job.pools is not None and queued.job.pools.on_gpu for queued in batch):
        await asyncio.sleep(DRAIN_S)
    return ended
