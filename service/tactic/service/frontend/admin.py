"""AdminService."""

from __future__ import annotations

from typing import Any

import grpc

from tactic.service.frontend.errors import RETRY_S, Code, ServiceError, Violation
from tactic.service.frontend.model import ServedModel
from tactic.service.frontend.validation import require
from tactic.service.routing import LoadBook, Supervisor, WorkerTable
from tactic.service.sessions import SessionStore
from tactic.v1 import admin_pb2, admin_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
SUPERVISOR_TIMEOUT_S = 10.0


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """What operators ask."""

    def __init__(
        self,
        table: WorkerTable,
        supervisor: Supervisor,
        load: LoadBook,
        sessions: SessionStore,
        model: ServedModel,
    ) -> None:
        self._table = table
        self._supervisor = supervisor
        self._load = load
        self._sessions = sessions
        self._model = model

    async def ListModels(
        self, request: admin_pb2.ListModelsRequest, context: Context
    ) -> admin_pb2.ListModelsResponse:
        """Names the model served."""
        return admin_pb2.ListModelsResponse(models=[self._model.describe()])

    async def ListWorkers(
        self, request: admin_pb2.ListWorkersRequest, context: Context
    ) -> admin_pb2.ListWorkersResponse:
        """Lists workers as the supervisor last described them."""
        return admin_pb2.ListWorkersResponse(workers=self._table.workers.values())

    async def DrainWorker(self, request: admin_pb2.DrainWorkerRequest, context: Context) -> admin_pb2.Worker:
        """Asks the supervisor to let a worker's turns end and give it no more."""
        if not request.worker_id:
            require([Violation("worker_id", "must not be empty")])
        try:
            return await self._supervisor.drain(request.worker_id, SUPERVISOR_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            if error.code() in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                text = f"the supervisor does not answer: {error.details()}"
                raise ServiceError(Code.UNAVAILABLE, "NO_SUPERVISOR", text, retry_s=RETRY_S) from error
            text = error.details() or error.code().name
            raise ServiceError(
                error.code(), "WORKER_NOT_DRAINED", text, violations=[Violation("worker_id", text)]
            ) from error

    async def GetStats(
        self, request: admin_pb2.GetStatsRequest, context: Context
    ) -> admin_pb2.GetStatsResponse:
        """Counts sessions and turns over all front ends."""
        return admin_pb2.GetStatsResponse(
            sessions=await self._sessions.count(),
            turns_running=await self._load.count("turn"),
            workers=self._table.workers.values(),
        )
