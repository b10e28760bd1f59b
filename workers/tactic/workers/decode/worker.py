"""The decode worker: a Ray actor that holds one SGLang engine and serves it over gRPC."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Sequence
from typing import Any

import grpc
import ray
import torch
from google.protobuf import json_format

from tactic.v1.admin_pb2 import WorkerStats
from tactic.worker.v1.supervisor_pb2 import DeploymentSpec
from tactic.worker.v1.worker_pb2_grpc import add_WorkerServiceServicer_to_server
from tactic.workers.decode.engine import (
    RESERVED_POSITIONS,
    backend_config,
    describe_model,
    engine_arguments,
    prepare_environment,
)
from tactic.workers.decode.hub import SchedulerHub
from tactic.workers.decode.servicer import WorkerServicer
from tactic.workers.refresh.dispatcher import RefreshDispatcher
from tactic.workers.refresh.mps import MpsDaemon
from tactic.workers.sglang.checks import check_checkpoint
from tactic.workers.sglang.device import engine_device
from tactic.workers.sharing.process import when_ended

logger = logging.getLogger(__name__)

MESSAGE_BYTES = 64 * 2**20
HELLO_TIMEOUT_S = 30.0
EVERY_INTERFACE = ("0.0.0.0", "[::]", "::")


class DecodeWorker:
    """An async actor: construct it, then `start` it.

    Args:
        worker_id: its name in the deployment.
        spec_json: the DeploymentSpec as protobuf JSON.
        clustering: handles of the ClusteringWorker actors that it may ask.
    """

    def __init__(self, worker_id: str, spec_json: str, clustering: Sequence[Any]) -> None:
        self._worker_id = worker_id
        self._spec = json_format.Parse(spec_json, DeploymentSpec())
        self._clustering = clustering
        self._servicer: WorkerServicer | None = None
        self._mps: MpsDaemon | None = None
        self._stopping = False

    async def start(self) -> dict[str, Any]:
        """Brings the engine up and listens.

        Returns:
            address, node, pid, device and the model as protobuf JSON.

        Raises:
            UnsupportedError: the checkpoint or a setting can't be served.
            RuntimeError: the engine came up with another attention backend than ours.
        """
        engine_spec = self._spec.engine
        hub = SchedulerHub(ranks=max(1, engine_spec.tensor_parallel))
        backend = backend_config(self._spec, hub.address)
        prepare_environment(engine_spec, backend)
        arguments = engine_arguments(engine_spec)
        dispatcher = RefreshDispatcher(
            self._clustering, backend.refresh.timeout_s, hub.reply, ranks=hub.ranks
        )
        hub.start(dispatcher.submit)
        dispatcher.start()

        # Before the engine's processes touch their GPUs. A start that fails leaves it for the next one.
        self._mps = MpsDaemon.start(backend.refresh)

        import sglang  # Only here: it takes seconds, and prepare_environment must come first.

        # Blocks this actor's event loop while the engine starts, which SGLang's constructor needs.
        engine = sglang.Engine(**arguments)
        for pid in (child.pid for child in multiprocessing.active_children()):
            if pid is not None:  # None before it is started, which all of them are
                when_ended(pid, self._child_ended)
        try:
            hellos = await hub.wait_hello(HELLO_TIMEOUT_S)
        except TimeoutError as error:
            self._stopping = True
            engine.shutdown()
            raise RuntimeError(
                "the engine runs, but not with the tactic attention backend: its plug-in did not load. Is "
                "the `tactic` distribution installed in the engine's environment, and does SGLANG_PLUGINS "
                "(if set) name it?"
            ) from error

        model = describe_model(engine_spec, check_checkpoint(engine_spec.model_path))
        room = min(hello.kv_tokens for hello in hellos) - RESERVED_POSITIONS
        if room < model.context_length:
            logger.warning("the KV cache limits the context of %d to %d", model.context_length, room)
            model.context_length = room
        servicer = WorkerServicer(self._worker_id, engine, hub, model)
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MESSAGE_BYTES),
                ("grpc.max_send_message_length", MESSAGE_BYTES),
            ]
        )
        add_WorkerServiceServicer_to_server(servicer, server)
        host = self._spec.worker_host or "127.0.0.1"
        port = server.add_insecure_port(f"{host}:0")
        reachable = ray.util.get_node_ip_address() if host in EVERY_INTERFACE else host
        await server.start()
        self._servicer, self._server, self._engine = servicer, server, engine
        self._hub, self._dispatcher = hub, dispatcher
        return {
            "address": f"{reachable}:{port}",
            "node": os.uname().nodename,
            "pid": os.getpid(),
            "device": torch.cuda.get_device_name() if engine_device() == "cuda" else "cpu",
            "model": json_format.MessageToJson(model),
        }

    async def stats(self) -> bytes:
        """A serialised tactic.v1.WorkerStats; also how the supervisor sees that the process lives."""
        return (
            self._servicer.stats().SerializeToString()
            if self._servicer
            else WorkerStats().SerializeToString()
        )

    async def drain(self) -> None:
        """Refuses new requests from now on; the running ones go on."""
        if self._servicer is not None:
            self._servicer.draining = True

    async def stop(self) -> None:
        """Ends the engine's processes."""
        self._stopping = True
        if self._servicer is not None:
            await self._server.stop(grace=1.0)
            self._engine.shutdown()
            await self._dispatcher.stop()
            await self._hub.stop()
        if self._mps is not None:
            self._mps.stop()

    def _child_ended(self) -> None:
        """An engine without one of its processes is none: this one ends, too, and the supervisor sees it.

        SGLang's own watchdog sends SIGQUIT, which nohup and a shell's background jobs have us ignore.
        """
        if self._stopping:
            return
        logger.critical("a process of the engine has ended; so does %s", self._worker_id)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)


def create_decode_worker(
    worker_id: str, spec: DeploymentSpec, clustering: Sequence[Any], options: dict[str, Any]
) -> Any:
    """Creates the Ray actor, not restarted when it dies: its engine needs `start`.

    Args:
        worker_id: its name in the deployment.
        spec: the deployment.
        clustering: handles of the ClusteringWorker actors that it may ask.
        options: Ray's, which say where it runs.

    Returns:
        Its handle.
    """
    actor = ray.remote(DecodeWorker)
    return actor.options(max_restarts=0, max_concurrency=1000, **options).remote(
        worker_id, json_format.MessageToJson(spec), list(clustering)
    )
