"""Runs the workers of a deployment: `python -m tactic.workers --spec FILE`.

FILE holds a tactic.worker.v1.DeploymentSpec as protobuf JSON. One line of JSON on stdout tells where
SupervisorService listens; logs go to stderr. SIGTERM or SIGINT ends everything that it started.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

import grpc
import ray
from google.protobuf import json_format
from pydantic import ValidationError

from tactic.worker.v1.supervisor_pb2 import DeploymentSpec
from tactic.worker.v1.supervisor_pb2_grpc import add_SupervisorServiceServicer_to_server
from tactic.workers.decode.engine import backend_config, engine_arguments, prepare_environment
from tactic.workers.refresh import mps
from tactic.workers.sglang.checks import UnsupportedError
from tactic.workers.sglang.device import engine_device
from tactic.workers.supervisor import cluster
from tactic.workers.supervisor.placement import plan
from tactic.workers.supervisor.servicer import SupervisorServicer
from tactic.workers.supervisor.supervisor import Supervisor

EXIT_BAD_SPEC = 2


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tactic.workers", description=__doc__)
    parser.add_argument("--spec", type=Path, required=True, help="DeploymentSpec as protobuf JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        spec = json_format.Parse(arguments.spec.read_text(), DeploymentSpec())
        check(spec)
    except (OSError, json_format.ParseError, UnsupportedError, ValidationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_SPEC
    try:
        spec.engine.device = cluster.join(spec)
        asyncio.run(serve(spec))
    except (UnsupportedError, ConnectionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_SPEC
    finally:
        ray.shutdown()
    return 0


def check(spec: DeploymentSpec) -> None:
    """Finds what can't work before anything is started.

    Raises:
        UnsupportedError: the engine's part, and placements.
        pydantic.ValidationError: the index's and the refresh's part.
    """
    backend = backend_config(spec, link="")
    prepare_environment(spec.engine, backend)
    engine_arguments(spec.engine)
    if not spec.decode_workers:
        raise UnsupportedError("decode_workers: at least one is needed")
    if not spec.ray_address:
        plan(spec, engine_device())
        mps.check(backend.refresh)


async def serve(spec: DeploymentSpec) -> None:
    """Serves until a signal asks to end. Raises UnsupportedError if the cluster has no room."""
    supervisor = Supervisor(spec)
    server = grpc.aio.server()
    add_SupervisorServiceServicer_to_server(SupervisorServicer(supervisor), server)
    listen = spec.listen or "127.0.0.1:0"
    port = server.add_insecure_port(listen)
    await server.start()
    host = listen.rpartition(":")[0]
    print(json.dumps({"event": "listening", "address": f"{host}:{port}"}), flush=True)
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    starting = asyncio.create_task(supervisor.start(cluster.wait_s(spec)))
    ended = asyncio.create_task(ending.wait())
    try:
        await asyncio.wait((starting, ended), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
            await ended
    finally:
        starting.cancel()
        ended.cancel()
        await server.stop(grace=0.5)
        await supervisor.stop()


if __name__ == "__main__":
    sys.exit(main())
