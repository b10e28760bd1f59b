"""A clustering worker and the decode worker's end of the line, without Ray, for measuring."""

import asyncio
import multiprocessing
import queue
import threading
import time
from collections import deque
from collections.abc import Container, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, Self, TypeVar

from tactic.workers.config import RefreshConfig
from tactic.workers.decode.hub import SchedulerHub
from tactic.workers.refresh.clustering import ClusteringWorker
from tactic.workers.refresh.messages import Gauges, RefreshJob, RefreshReply, RequestReport

T = TypeVar("T")

WAIT_S = 300.0
REPORT_S = 30.0
END_S = 10.0
QUEUED = 4


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
        self._process.join(END_S)
        self.kill()

    def work(self, job: RefreshJob) -> tuple[RefreshReply, float]:
        """Does a job in place; its answer, and the seconds that it took.

        Raises:
            RuntimeError: it can't map the engine's memory.
            TimeoutError: it does not answer.
            EOFError: it has died.
        """
        self.ask(job)
        if not self._end.poll(WAIT_S):
            raise TimeoutError(f"the clustering worker has not done its job within {WAIT_S:.0f} s")
        return self.answer()

    def ask(self, job: RefreshJob) -> None:
        """Begins a job; see `answered`."""
        self._end.send(job)

    @property
    def answered(self) -> bool:
        """Whether the job that was asked for is done, or its process dead."""
        return self._end.poll()

    def answer(self) -> tuple[RefreshReply, float]:
        """As `work`, of the job that was asked for."""
        reply, seconds = self._end.recv()
        if reply.keys_wanted:
            raise RuntimeError(f"the clustering worker can't work in place: {reply.keys_wanted}")
        return reply, seconds

    def kill(self) -> None:
        """Ends its process at once, whatever it is at."""
        self._process.kill()
        self._process.join(WAIT_S)


class Crew:
    """Does jobs one after the other, without being waited for, by an actor that may be killed at one.

    Args:
        config: of its actors.
    """

    def __init__(self, config: RefreshConfig) -> None:
        self.kills = 0
        self._config = config
        self._actor = Actor(config)
        # Jobs of the present actor, which does one at least.
        self._done = 0
        self._doomed = False
        self._waiting: deque[RefreshJob] = deque()
        self._under_way: RefreshJob | None = None
        self._replies: list[RefreshReply] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._actor.kill()

    @property
    def busy(self) -> bool:
        """Whether there is a job that has not ended."""
        return self._under_way is not None

    def doom(self) -> None:
        """Has the actor killed at the next job but its first, and another one started."""
        self._doomed = True

    def take(self, job: RefreshJob) -> None:
        """Queues a job, or refuses it, as a deployment does."""
        if len(self._waiting) >= QUEUED:
            self._replies.append(RefreshReply(job.job_id, error="busy"))
            return
        self._waiting.append(job)
        self._next()

    def replies(self) -> list[RefreshReply]:
        """Of the jobs that have ended since the last call."""
        if self._under_way is not None:
            if self._actor.answered:
                self._end(self._actor.answer()[0])
                self._done += 1
            elif self._doomed and self._done:
                self._actor.kill()
                self._actor, self._done, self._doomed = Actor(self._config), 0, False
                self.kills += 1
                self._end(RefreshReply(self._under_way.job_id, error="actor_died"))
            self._next()
        replies, self._replies = self._replies, []
        return replies

    def _end(self, reply: RefreshReply) -> None:
        self._replies.append(reply)
        self._under_way = None

    def _next(self) -> None:
        if self._under_way is None and self._waiting:
            self._under_way = self._waiting.popleft()
            self._actor.ask(self._under_way)


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


@contextmanager
def refreshing(line: Line, actor: Actor, *, refuse: Container[str] = ()) -> Iterator[list[float]]:
    """Has the jobs of all requests done, but of those in `refuse`; yields the seconds that each job took."""
    ended = threading.Event()
    times: list[float] = []

    def serve() -> None:
        while not ended.is_set():
            try:
                job = line.jobs.get(timeout=0.05)
            except queue.Empty:
                continue
            reply = RefreshReply(job.job_id, error="busy")
            if job.request_id not in refuse:
                reply, seconds = actor.work(job)
                times.append(seconds)
            line.reply(reply)

    with ThreadPoolExecutor(1) as pool:
        serving = pool.submit(serve)
        try:
            yield times
        finally:
            ended.set()
        serving.result()


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
