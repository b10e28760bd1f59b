"""Starts, places, watches and restarts the workers of a deployment, on Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from typing import Any

import ray
from google.protobuf import json_format

from tactic.v1.admin_pb2 import (
    WORKER_KIND_CLUSTERING,
    WORKER_KIND_DECODE,
    WORKER_STATE_DEAD,
    WORKER_STATE_STARTING,
    Model,
    Worker,
    WorkerStats,
)
from tactic.worker.v1.supervisor_pb2 import DeploymentSpec
from tactic.workers.decode.engine import backend_config
from tactic.workers.decode.worker import create_decode_worker
from tactic.workers.refresh.worker import create_clustering_worker
from tactic.workers.supervisor.entry import WorkerEntry
from tactic.workers.supervisor.placement import Placement

logger = logging.getLogger(__name__)

POLL_S = 0.5
STOP_S = 10.0
LOOPBACK = ("127.", "localhost", "[::1]")
BACKOFF_S = (1.0, 2.0, 5.0, 15.0, 30.0)


class Supervisor:
    """Keeps the deployment as its spec says.

    A decode worker that dies is made anew, with its engine; a clustering actor is restarted by Ray itself.

    Args:
        spec: what is to run; `engine.device` is "cuda" or "cpu". Ray must be initialised.

    Raises:
        UnsupportedError: the placement needs GPUs, and the engines run without.
    """

    def __init__(self, spec: DeploymentSpec) -> None:
        self.spec = spec
        self.model: Model | None = None
        self.changed = asyncio.Condition()
        self._placement = Placement(spec, spec.engine.device)
        self._clustering = [
            WorkerEntry.create("clustering", number, WORKER_KIND_CLUSTERING)
            for number in range(spec.clustering_workers)
        ]
        self._decode = [
            WorkerEntry.create("decode", number, WORKER_KIND_DECODE) for number in range(spec.decode_workers)
        ]
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def workers(self) -> list[Worker]:
        """The records of all workers."""
        return [entry.record for entry in (*self._decode, *self._clustering)]

    async def start(self, wait_s: float) -> None:
        """Starts all workers and begins to watch them.

        Args:
            wait_s: longest that the Ray cluster may take to have room.

        Raises:
            UnsupportedError: it has none.
        """
        await self._placement.reserve(wait_s)
        refresh = backend_config(self.spec, link="").refresh
        for entry in self._clustering:
            options = self._placement.clustering(entry.number)
            entry.handle = create_clustering_worker(entry.record.worker_id, refresh, options)
        self._tasks = [
            *(asyncio.create_task(self._watch_clustering(entry)) for entry in self._clustering),
            *(asyncio.create_task(self._keep_decode(entry)) for entry in self._decode),
        ]

    async def stop(self) -> None:
        """Ends all workers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        stops = [entry.handle.stop.remote() for entry in self._decode if entry.handle is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await asyncio.gather(*(_await(ref) for ref in stops), return_exceptions=True)
        for entry in (*self._decode, *self._clustering):
            if entry.handle is not None:
                ray.kill(entry.handle)
        self._placement.remove()

    async def drain(self, worker_id: str) -> Worker:
        """No new requests for a decode worker.

        Raises:
            KeyError: there is no decode worker of that name.
        """
        entry = next((e for e in self._decode if e.record.worker_id == worker_id), None)
        if entry is None:
            raise KeyError(worker_id)
        entry.draining = True
        if entry.record.address:
            # One that is dying just now drains when it is back.
            with contextlib.suppress(ray.exceptions.RayError):
                await entry.handle.drain.remote()
                entry.ready()
        await self._notify()
        return entry.record

    async def _keep_decode(self, entry: WorkerEntry) -> None:
        """Runs a decode worker, and another each time it dies."""
        servants = [self._clustering[number].handle for number in self._placement.servants(entry.number)]
        while True:
            # Its node may have died.
            await self._placement.room(entry.number)
            options = self._placement.decode(entry.number)
            entry.handle = create_decode_worker(entry.record.worker_id, self.spec, servants, options)
            try:
                await self._run_decode(entry)
            except ray.exceptions.RayError as error:
                logger.error("%s died: %s", entry.record.worker_id, _first_line(error))
            ray.kill(entry.handle)
            entry.record.state = WORKER_STATE_DEAD
            entry.record.restarts += 1
            entry.record.ClearField("address")
            await self._notify()
            await asyncio.sleep(BACKOFF_S[min(entry.failures, len(BACKOFF_S) - 1)])
            entry.failures += 1
            entry.record.state = WORKER_STATE_STARTING
            await self._notify()

    async def _run_decode(self, entry: WorkerEntry) -> None:
        """From start to death. Raises ray.exceptions.RayError when it dies."""
        info: dict[str, Any] = await entry.handle.start.remote()
        self.model = json_format.Parse(info["model"], Model())
        record = entry.record
        record.address, record.pid, record.device = info["address"], info["pid"], info["device"]
        record.model, record.node = self.model.name, info["node"]
        if record.node != os.uname().nodename and record.address.startswith(LOOPBACK):
            logger.error(
                "%s runs on %s and listens on %s, where nobody else reaches it: set workers.host = 0.0.0.0",
                record.worker_id,
                record.node,
                record.address,
            )
        if entry.draining:
            await entry.handle.drain.remote()
        entry.ready()
        logger.info("%s serves %s on %s", record.worker_id, record.model, record.address)
        await self._notify()
        while True:
            record.stats.CopyFrom(WorkerStats.FromString(await entry.handle.stats.remote()))
            await asyncio.sleep(POLL_S)

    async def _watch_clustering(self, entry: WorkerEntry) -> None:
        record = entry.record
        while True:
            try:
                info: dict[str, Any] = await entry.handle.snapshot.remote()
            except ray.exceptions.RayError:
                if record.state != WORKER_STATE_DEAD:
                    logger.warning("%s died; Ray restarts it", record.worker_id)
                    record.state = WORKER_STATE_DEAD
                    await self._notify()
                await asyncio.sleep(POLL_S)
                continue
            record.restarts += bool(record.pid) and record.pid != info["pid"]
            changed = record.pid != info["pid"] or record.state == WORKER_STATE_DEAD
            record.pid, record.node = info["pid"], info["node"]
            record.stats.jobs_done, record.stats.jobs_failed = info["jobs_done"], info["jobs_failed"]
            entry.ready()
            if changed:
                await self._notify()
            await asyncio.sleep(POLL_S)

    async def _notify(self) -> None:
        async with self.changed:
            self.changed.notify_all()


async def _await(ref: Any) -> Any:
    return await ref


def _first_line(error: BaseException) -> str:
    """The cause in one line; Ray's own texts run over pages."""
    cause = getattr(error, "cause", None) or error
    return next(iter(str(cause).strip().splitlines()), type(cause).__name__)
