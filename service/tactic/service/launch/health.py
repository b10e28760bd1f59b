"""Waiting until workers are ready and front ends serve."""

import time
from collections.abc import Callable, Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tactic.service.launch.errors import LaunchError
from tactic.service.launch.process import Process
from tactic.v1 import admin_pb2
from tactic.worker.v1 import supervisor_pb2, supervisor_pb2_grpc

Progress = Callable[[str], None]

POLL_S = 0.2
# How often it is said again what is being waited for.
REPORT_S = 10
# A worker that has failed this often will not come up by trying again.
START_ATTEMPTS = 3


def wait_for_workers(
    address: str, wanted: int, timeout_s: float, supervisor: Process | None, progress: Progress
) -> None:
    """Waits until `wanted` workers are ready.

    Args:
        address: host:port of the supervisor.
        wanted: decode and clustering workers together.
        timeout_s: seconds they get.
        supervisor: the supervisor's process, if it is ours: waiting ends when it does.
        progress: is told what is being waited for.

    Raises:
        LaunchError: if the supervisor ends, a worker keeps failing, or time is up.
    """
    began = time.monotonic()
    deadline = began + timeout_s
    missing, told = "the supervisor's first report", ""
    while (left := deadline - time.monotonic()) > 0:
        if supervisor is not None:
            supervisor.check_alive()
        with grpc.insecure_channel(address) as channel:
            stub = supervisor_pb2_grpc.SupervisorServiceStub(channel)
            try:
                for report in stub.WatchWorkers(supervisor_pb2.WatchWorkersRequest(), timeout=left):
                    missing = _missing(report.workers, wanted)
                    if not missing:
                        return
                    elapsed = int((time.monotonic() - began) / REPORT_S) * REPORT_S
                    message = f"waiting for {missing}: {elapsed} s"
                    if message != told:
                        progress(message)
                        told = message
            except grpc.RpcError:
                # Not listening yet, or gone: the process or the clock decides.
                time.sleep(POLL_S)
    problem = f"workers were not ready after {timeout_s:.0f} s, still waiting for {missing}"
    raise supervisor.failure(f"is up, but {problem}") if supervisor else LaunchError(problem)


def _missing(workers: Iterable[admin_pb2.Worker], wanted: int) -> str:
    workers = list(workers)
    ready = sum(worker.state == admin_pb2.WORKER_STATE_READY for worker in workers)
    for worker in workers:
        if worker.state == admin_pb2.WORKER_STATE_DEAD and worker.restarts >= START_ATTEMPTS:
            raise LaunchError(
                f"worker {worker.worker_id} died {worker.restarts} times while starting; see its log"
            )
    if ready >= wanted:
        return ""
    waiting = [worker.worker_id for worker in workers if worker.state != admin_pb2.WORKER_STATE_READY]
    return ", ".join(waiting) or f"{wanted - ready} workers"


def is_serving(address: str, timeout_s: float = 2.0) -> bool:
    """Asks the front end at `address` (host:port) through grpc.health.v1 whether it serves."""
    with grpc.insecure_channel(address) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_s
            )
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


def wait_until_serving(address: str, timeout_s: float, frontend: Process) -> None:
    """Waits until the front end serves; raises LaunchError if it ends first or time is up."""
    deadline = time.monotonic() + timeout_s
    while not is_serving(address):
        frontend.check_alive()
        if time.monotonic() > deadline:
            raise frontend.failure(f"did not serve after {timeout_s:.0f} s")
        time.sleep(POLL_S)
