"""A clustering worker and the decode worker's end of the line, without Ray, for measuring."""

import asyncio
import multiprocessing
import queue
import threading
import time
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from tactic.workers.config import RefreshConfig
from tactic.workers.decode.hub import SchedulerHub
from tactic.workers.refresh.clustering import ClusteringWorker
from tactic.workers.refresh.messages import Gauges, RefreshJob, RefreshReply, RequestReport

T = TypeVar("T")

WAIT_S = 300.0
REPORT_S = 30.0


class Actor:
    """A ClusteringWorker in a process of its own: `with Actor(config) as actor`."""

    def __init__(self, config: RefreshConfig) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(config, far), daemon=True)
        self._process.start()
        far.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end.close()
        self._process.join(WAIT_S)

    def work(self, job: RefreshJob) -> tuple[RefreshReply, float]:
        """Does a job in place; its answer, and the seconds that it took.

        Raises:
            RuntimeError: it can't map the engine's memory.
        """
        self._end.send(job)
        reply, seconds = self._end.recv()
        if reply.keys_wanted:
            raise RuntimeError(f"the clustering worker can't work in place: {reply.keys_wanted}")
        return reply, seconds


class Line:
    """A SchedulerHub on a thread of its own, which leaves refresh jobs to whoever takes them from `jobs`."""

    def __init__(self) -> None:
        self.jobs: queue.Queue[RefreshJob] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._hub = self._run(self._open())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._hub.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    @property
    def address(self) -> str:
        """Where the engine connects."""
        return self._hub.address

    @property
    def gauges(self) -> Gauges | None:
        """What the rank said last of its index."""
        return self._hub.gauges.get(0)

    def reply(self, reply: RefreshReply) -> None:
        """Answers a job."""
        self._run(self._hub.reply(0, reply, []))

    def report(self, request: str) -> RequestReport:
        """What the backend says of a request that is over."""
        (report,) = self._run(self._hub.take_reports(request, 1, REPORT_S))
        return report

    async def _open(self) -> SchedulerHub:
        async def on_job(job: RefreshJob, _: list[bytes]) -> None:
            self.jobs.put(job)

        hub = SchedulerHub(ranks=1)
        hub.start(on_job)
        return hub

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)


def _serve(config: RefreshConfig, end: "Connection[Any, Any]") -> None:
    # Ray decides this in a deployment. The engine is on the first.
    worker = ClusteringWorker(config, gpu=1 if config.placement == "dedicated" else None)
    while True:
        try:
            job: RefreshJob = end.recv()
        except EOFError:
            return
        began = time.monotonic()
        reply, _ = worker.cluster_one(job, [])
        end.send((reply, time.monotonic() - began))
