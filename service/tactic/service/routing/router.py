"""Which worker serves a request, and the connection to it."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import AsyncIterator, Collection, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from tactic.service.routing.load import Kind, LoadBook
from tactic.service.routing.table import WorkerTable
from tactic.v1 import admin_pb2
from tactic.worker.v1 import worker_pb2, worker_pb2_grpc


class NoWorkerError(Exception):
    """No decode worker takes requests now."""

    def __init__(self) -> None:
        super().__init__("no decode worker is ready")


@dataclass(eq=False)
class Assignment:
    """A request's place on a worker, counted as its load.

    Attributes:
        lost: the supervisor has reported that the worker died meanwhile.
    """

    worker: admin_pb2.Worker
    request_id: str
    stub: worker_pb2_grpc.WorkerServiceAsyncStub
    call: grpc.aio.UnaryStreamCall[worker_pb2.GenerateRequest, worker_pb2.GenerateResponse] | None = None
    lost: bool = False

    def lose(self) -> None:
        """Ends the call: nothing more will come of it."""
        self.lost = True
        if self.call is not None:
            self.call.cancel()


class Router:
    """Assigns requests to ready decode workers: the preferred one, else the least loaded."""

    def __init__(self, table: WorkerTable, load: LoadBook, max_message_bytes: int) -> None:
        self.table = table
        self._load = load
        self._options = [
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_receive_message_length", max_message_bytes),
            # A worker that comes back is to be found at once.
            ("grpc.max_reconnect_backoff_ms", 1000),
        ]
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._assignments: set[Assignment] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._turn = itertools.count()
        table.on_change(self._sort_out)

    @asynccontextmanager
    async def assign(
        self, tokens: int, kind: Kind, *, preferred: str = "", without: Collection[str] = ()
    ) -> AsyncIterator[Assignment]:
        """Picks a worker and counts `tokens` as its load inside the block.

        Args:
            tokens: length of the prompt.
            kind: what the request is.
            preferred: worker to take if it is ready, whatever its load.
            without: workers not to take.

        Raises:
            NoWorkerError: none is ready.
        """
        ready = {w.worker_id: w for w in self.table.ready() if w.worker_id not in without}
        if not ready:
            raise NoWorkerError
        # Equally loaded workers take turns.
        first = next(self._turn) % len(ready)
        order = [*list(ready)[first:], *list(ready)[:first]]
        request_id = uuid.uuid4().hex
        try:
            worker = ready[await self._load.charge(request_id, tokens, kind, order, preferred)]
            stub = worker_pb2_grpc.WorkerServiceStub(self._channel(worker.address))
            assignment = Assignment(worker, request_id, stub)
            self._assignments.add(assignment)
            try:
                yield assignment
            finally:
                self._assignments.discard(assignment)
        finally:
            # To its end, though a cancelled request ends here too.
            await asyncio.shield(self._keep(self._load.discharge(request_id)))

    async def close(self) -> None:
        """Takes back what is still charged, and closes all connections."""
        if self._closing:
            await asyncio.wait(self._closing)
        for channel in self._channels.values():
            await channel.close(grace=None)

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = grpc.aio.insecure_channel(address, options=self._options)
        return self._channels[address]

    def _sort_out(self) -> None:
        """Gives up calls to workers that died, and connections that lead nowhere."""
        for assignment in list(self._assignments):
            if not self.table.is_alive(assignment.worker):
                assignment.lose()
        addresses = {worker.address for worker in self.table.workers.values()}
        for address in self._channels.keys() - addresses:
            self._keep(self._channels.pop(address).close(grace=1.0))

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts `work` and holds on to it, for nobody else does."""
        task = asyncio.create_task(work)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task
