"""A deployment on this machine, from nothing to serving and back."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from google.protobuf import json_format

from tactic.service.config import Settings, render_toml
from tactic.service.launch import preflight
from tactic.service.launch.errors import LaunchError
from tactic.service.launch.health import Progress, wait_for_workers, wait_until_serving
from tactic.service.launch.interrupts import interrupts_deferred
from tactic.service.launch.process import Process, terminate
from tactic.service.launch.redis_server import RedisServer
from tactic.service.launch.state import DeploymentState, ProcessState, read_state, remove_state
from tactic.worker.v1 import supervisor_pb2

# Importing Ray and the engine's packages takes most of this on a cold disk.
LISTEN_TIMEOUT_S = 180.0
SERVING_TIMEOUT_S = 60.0
SUPERVISOR_GRACE_S = 30.0
# For closing its connections once the running turns had their own grace.
FRONTEND_EXTRA_GRACE_S = 5.0


@dataclass(frozen=True)
class Deployment:
    """A deployment that serves. As a context manager, it is stopped at the end."""

    settings: Settings
    state: DeploymentState
    processes: list[Process]

    @property
    def address(self) -> str:
        """host:port of the first front end."""
        return self.state.addresses[0]

    def stop(self, progress: Progress = lambda message: None) -> None:
        """Stops everything that `start` has started, last first."""
        _stop_children(self.processes, progress)
        remove_state(_state_dir(self.settings.state_dir))

    def __enter__(self) -> "Deployment":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start(settings: Settings, progress: Progress = lambda message: None) -> Deployment:
    """Starts Redis, supervisor and front ends as `settings` say, and returns when they serve.

    The processes outlive the caller; `stop` ends them. If anything fails on the way, or the caller is
    interrupted, what has been started is stopped again.

    Args:
        settings: of the deployment; `state_dir` is created.
        progress: is told, in words, what is being waited for.

    Raises:
        ConfigError: if there is no model to serve.
        LaunchError: if the deployment runs already or cannot start.
    """
    state_dir = _state_dir(settings.state_dir)
    state_dir.mkdir(parents=True, exist_ok=True)
    with _exclusive(state_dir):
        if read_state(state_dir) is not None:
            raise LaunchError(
                f"a deployment runs already in {state_dir}: see `tactic status`, or end it with `tactic down`"
            )
        preflight.check(settings)
        launch = _Launch(settings, state_dir, progress)
        try:
            launch.run()
        except BaseException:
            _stop_children(launch.processes, progress)
            remove_state(state_dir)
            raise
    return Deployment(settings, launch.state, launch.processes)


def stop(state_dir: Path, progress: Progress = lambda message: None) -> list[ProcessState]:
    """Stops the deployment of `state_dir`, last process first, whoever started it.

    Returns:
        The processes that were still running; empty if there was nothing to stop.
    """
    state_dir = _state_dir(state_dir)
    state = read_state(state_dir)
    running = [process for process in state.processes if process.alive] if state else []
    for process in reversed(running):
        progress(f"stopping {process.name}")
        terminate(process)
    remove_state(state_dir)
    return running


def _state_dir(given: Path) -> Path:
    return given.expanduser().resolve()


def _stop_children(processes: list[Process], progress: Progress) -> None:
    for process in reversed(processes):
        progress(f"stopping {process.state.name}")
        process.terminate()


@contextmanager
def _exclusive(state_dir: Path) -> Iterator[None]:
    with (state_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchError(f"another `tactic up` is at work in {state_dir}") from None
        yield


class _Launch:
    """One attempt to start a deployment; what it has started is in `processes`."""

    def __init__(self, settings: Settings, state_dir: Path, progress: Progress) -> None:
        self.settings = settings
        self.state_dir = state_dir
        self.logs = state_dir / "logs"
        self.progress = progress
        self.processes: list[Process] = []
        self.state = DeploymentState()

    def run(self) -> None:
        workers = self.settings.workers
        # First, because a missing model needs no Redis to be reported.
        spec = None if workers.supervisor_address else self.settings.to_deployment_spec()
        redis_url = self.settings.redis.url or self._start_redis()
        supervisor = self._start_supervisor(spec) if spec else None
        supervisor_address = workers.supervisor_address or self.state.supervisor_address
        self._record(supervisor_address=supervisor_address)
        frontends = self._start_frontends(redis_url, supervisor_address)
        wanted = workers.decode + workers.clustering if spec else 1
        wait_for_workers(supervisor_address, wanted, workers.start_timeout_s, supervisor, self.progress)
        self.progress("waiting for the front end to serve")
        for frontend, address in zip(frontends, self.state.addresses, strict=True):
            wait_until_serving(address, SERVING_TIMEOUT_S, frontend)

    def _start_redis(self) -> str:
        self.progress("starting the embedded Redis server")
        with interrupts_deferred():
            server = RedisServer.spawn(self.state_dir, self.settings.redis.appendfsync)
            self._add(server.process)
        self._record(redis_url=server.url)
        server.wait_until_loaded()
        return server.url

    def _start_supervisor(self, spec: supervisor_pb2.DeploymentSpec) -> Process:
        self.progress("starting the supervisor and Ray")
        file = self.state_dir / "deployment-spec.json"
        file.write_text(json_format.MessageToJson(spec), encoding="utf-8")
        command = [sys.executable, "-m", "tactic.workers", "--spec", str(file)]
        with interrupts_deferred():
            supervisor = Process.spawn("supervisor", command, self.logs, grace_s=SUPERVISOR_GRACE_S)
            self._add(supervisor)
        self._record(supervisor_address=supervisor.listening_address(LISTEN_TIMEOUT_S))
        return supervisor

    def _start_frontends(self, redis_url: str, supervisor_address: str) -> list[Process]:
        self.progress("starting the front end")
        frontends = []
        for number in range(self.settings.frontend.processes):
            config = self._frontend_config(number, redis_url, supervisor_address)
            command = [sys.executable, "-m", "tactic.service.frontend"]
            grace = self.settings.frontend.shutdown_grace_s + FRONTEND_EXTRA_GRACE_S
            with interrupts_deferred():
                frontends.append(Process.spawn(f"frontend-{number}", command, self.logs, config, grace))
                self._add(frontends[-1])
        addresses = [frontend.listening_address(LISTEN_TIMEOUT_S) for frontend in frontends]
        self._record(addresses=addresses)
        return frontends

    def _frontend_config(self, number: int, redis_url: str, supervisor_address: str) -> Path:
        """Writes what one front end reads: our settings, with what is known only now filled in."""
        settings = self.settings
        port = settings.frontend.port + number if settings.frontend.port else 0
        resolved = settings.model_copy(
            update={
                "frontend": settings.frontend.model_copy(update={"port": port}),
                "redis": settings.redis.model_copy(update={"url": redis_url}),
                "workers": settings.workers.model_copy(update={"supervisor_address": supervisor_address}),
            }
        )
        file = self.state_dir / f"frontend-{number}.toml"
        file.write_text(render_toml(resolved), encoding="utf-8")
        return file

    def _add(self, process: Process) -> None:
        self.processes.append(process)
        self._record(processes=[each.state for each in self.processes])

    def _record(self, **changes: object) -> None:
        """Keeps the state file in step, so that `tactic down` can end a launch that was killed."""
        self.state = self.state.model_copy(update=changes)
        self.state.write(self.state_dir)
