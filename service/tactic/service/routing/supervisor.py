"""The front end's line to the supervisor."""

from __future__ import annotations

import asyncio
import logging

import grpc

from tactic.service.routing.table import WorkerTable
from tactic.v1 import admin_pb2
from tactic.worker.v1 import supervisor_pb2, supervisor_pb2_grpc

log = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 5.0
# The supervisor reports at least every second; a silent one is gone.
SILENCE_S = 10.0


class Supervisor:
    """Keeps a worker table up to date."""

    def __init__(self, address: str, table: WorkerTable) -> None:
        self._table = table
        self._address = address
        # Reconnects as often as we ask, and not in its own growing intervals.
        options = [("grpc.max_reconnect_backoff_ms", round(LONGEST_BACKOFF_S * 1000))]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._stub = supervisor_pb2_grpc.SupervisorServiceStub(self._channel)

    async def watch(self) -> None:
        """Follows the supervisor's reports, for ever. While it cannot be reached, the last one stands."""
        backoff = FIRST_BACKOFF_S
        while True:
            call = self._stub.WatchWorkers(supervisor_pb2.WatchWorkersRequest())
            try:
                while True:
                    async with asyncio.timeout(SILENCE_S):
                        report = await call.read()
                    if not isinstance(report, supervisor_pb2.WatchWorkersResponse):
                        break
                    backoff = FIRST_BACKOFF_S
                    await self._table.update(report)
                log.warning("the supervisor at %s ended its reports", self._address)
            except TimeoutError:
                log.warning("the supervisor at %s is silent", self._address)
            except grpc.aio.AioRpcError as error:
                log.warning("no supervisor answers at %s: %s", self._address, error.details())
            finally:
                call.cancel()
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_S)

    async def drain(self, worker_id: str, timeout_s: float) -> admin_pb2.Worker:
        """Stops new turns on a worker.

        Raises:
            grpc.aio.AioRpcError: as the supervisor answers; NOT_FOUND for an unknown worker.
        """
        request = supervisor_pb2.DrainWorkerRequest(worker_id=worker_id)
        return await self._stub.DrainWorker(request, timeout=timeout_s)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close(grace=None)
