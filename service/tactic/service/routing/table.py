"""The workers there are, as the supervisor last described them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tactic.v1 import admin_pb2
from tactic.worker.v1 import supervisor_pb2

# A worker that failed a request is asked again after this, if the supervisor still calls it ready.
SUSPICION_S = 3.0

Incarnation = tuple[str, int, int]


def incarnation(worker: admin_pb2.Worker) -> Incarnation:
    """Returns what changes when a worker is started again."""
    return worker.address, worker.pid, worker.restarts


class WorkerTable:
    """Workers by id, and the model they serve.

    Attributes:
        workers: the last description of each.
        model: None until the first decode worker has been ready.
    """

    def __init__(self) -> None:
        self.workers: dict[str, admin_pb2.Worker] = {}
        self.model: admin_pb2.Model | None = None
        self._suspects: dict[str, tuple[Incarnation, float]] = {}
        self._changed = asyncio.Condition()
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls `listener` after each update."""
        self._listeners.append(listener)

    async def update(self, report: supervisor_pb2.WatchWorkersResponse) -> None:
        """Takes the supervisor's whole picture."""
        self.workers = {worker.worker_id: worker for worker in report.workers}
        if report.HasField("model"):
            self.model = report.model
        self._forget_old_suspicions()
        for listener in self._listeners:
            listener()
        async with self._changed:
            self._changed.notify_all()

    def ready(self) -> list[admin_pb2.Worker]:
        """Returns the decode workers that take requests, in the supervisor's order."""
        return [
            worker
            for worker in self.workers.values()
            if worker.kind == admin_pb2.WORKER_KIND_DECODE
            and worker.state == admin_pb2.WORKER_STATE_READY
            and worker.worker_id not in self._suspects
        ]

    async def wait_ready(self, timeout_s: float) -> bool:
        """Waits until a decode worker takes requests; returns False if none does in time."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: bool(self.ready()))
        except TimeoutError:
            return False
        return True

    async def wait_update(self) -> None:
        """Waits for the supervisor's next report."""
        async with self._changed:
            await self._changed.wait()

    def suspect(self, worker: admin_pb2.Worker) -> None:
        """Leaves out a worker that has just failed, until it has had time to recover or was started again."""
        self._suspects[worker.worker_id] = incarnation(worker), time.monotonic()

    def is_alive(self, worker: admin_pb2.Worker) -> bool:
        """Whether this incarnation of the worker still runs, as far as the supervisor knows."""
        now = self.workers.get(worker.worker_id)
        return (
            now is not None
            and now.state != admin_pb2.WORKER_STATE_DEAD
            and incarnation(now) == incarnation(worker)
        )

    def _forget_old_suspicions(self) -> None:
        now = time.monotonic()
        for worker_id, (suspected, since) in list(self._suspects.items()):
            worker = self.workers.get(worker_id)
            if worker is None or incarnation(worker) != suspected or now - since > SUSPICION_S:
                del self._suspects[worker_id]
