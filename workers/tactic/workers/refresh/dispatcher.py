"""The decode worker's half of a refresh: brings jobs to clustering actors and answers back."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
import ray

from tactic.workers.refresh.messages import RefreshJob, RefreshReply
from tactic.workers.refresh.worker import Frames

logger = logging.getLogger(__name__)

ATTEMPTS = 2
QUEUED_PER_ACTOR = 4
RESTART_POLL_S = 0.2

Reply = Callable[[int, RefreshReply, Frames], Awaitable[None]]


class RefreshDispatcher:
    """Queues jobs by the age of their tails, longest first, and runs one at a time on each actor.

    An actor that dies or takes too long costs its job one attempt; the job goes to whoever is free, then is
    given up. A queue that is full answers "busy": the index stays as it is and the request asks again later.

    Args:
        actors: handles of ClusteringWorker actors; Ray restarts them, so the handles stay good.
        timeout_s: longest that a job may take on an actor. The actor is killed then, and restarted by Ray.
        reply: sends an answer to a rank.
    """

    def __init__(self, actors: Sequence[Any], timeout_s: float, reply: Reply) -> None:
        self._actors = list(actors)
        self._timeout_s = timeout_s
        self._reply = reply
        self._order = itertools.count()
        self._queue: asyncio.PriorityQueue[tuple[int, int, int, RefreshJob, Frames]] = asyncio.PriorityQueue(
            QUEUED_PER_ACTOR * len(self._actors)
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
        try:
            self._queue.put_nowait((-job.tail, next(self._order), ATTEMPTS, job, arrays))
        except asyncio.QueueFull:
            await self._fail(job, "busy")

    async def _serve(self, actor: Any) -> None:
        while True:
            tail, order, attempts, job, frames = await self._queue.get()
            reason = await self._run(actor, job, frames)
            if not reason:
                continue
            logger.warning("refresh job %d of rank %d failed: %s", job.job_id, job.rank, reason)
            if attempts > 1 and not self._queue.full():
                self._queue.put_nowait((tail, order, attempts - 1, job, frames))
            else:
                await self._fail(job, reason)
            await self._answers(actor)

    async def _run(self, actor: Any, job: RefreshJob, frames: Frames) -> str:
        """Runs a job on an actor and sends the answer; the reason if there is none."""
        try:
            async with asyncio.timeout(self._timeout_s):
                specs, result = await actor.cluster.remote(job, frames)
        except TimeoutError:
            ray.kill(actor, no_restart=False)
            return "timeout"
        except ray.exceptions.RayActorError:
            return "actor_died"
        except ray.exceptions.RayError:
            logger.exception("clustering actor failed")
            return "actor_error"
        await self._reply(job.rank, RefreshReply(job.job_id, tensors=specs), result)
        return ""

    async def _answers(self, actor: Any) -> None:
        """Waits until an actor is there (again), so that it takes no jobs from others only to fail them."""
        while True:
            try:
                await actor.snapshot.remote()
            except ray.exceptions.RayActorError:
                await asyncio.sleep(RESTART_POLL_S)
            else:
                return

    async def _fail(self, job: RefreshJob, reason: str) -> None:
        await self._reply(job.rank, RefreshReply(job.job_id, error=reason), [])
