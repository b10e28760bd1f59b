"""tactic.worker.v1.SupervisorService."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.rpc import code_pb2

from tactic.v1.admin_pb2 import Worker
from tactic.worker.v1 import supervisor_pb2 as pb
from tactic.worker.v1.supervisor_pb2_grpc import SupervisorServiceServicer
from tactic.workers import errors
from tactic.workers.supervisor.supervisor import Supervisor

PERIOD_S = 1.0


class SupervisorServicer(SupervisorServiceServicer):
    """Shows a supervisor's workers."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def WatchWorkers(
        self, request: pb.WatchWorkersRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.WatchWorkersResponse]:
        """All workers at once, then at each change and at least every second."""
        changed = self._supervisor.changed
        while True:
            yield pb.WatchWorkersResponse(workers=self._supervisor.workers, model=self._supervisor.model)
            try:
                async with asyncio.timeout(PERIOD_S), changed:
                    await changed.wait()
            except TimeoutError:
                continue

    async def DrainWorker(
        self, request: pb.DrainWorkerRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Worker:
        """No new requests for a decode worker."""
        try:
            return await self._supervisor.drain(request.worker_id)
        except KeyError:
            message = f"worker_id: there is no decode worker {request.worker_id!r}"
            await errors.refuse(context, code_pb2.NOT_FOUND, "WORKER_NOT_FOUND", message, field="worker_id")
