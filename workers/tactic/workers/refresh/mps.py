"""NVIDIA MPS: an engine and its colocated clustering actors run side by side on one GPU, not in turns."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from tactic.workers.config import RefreshConfig
from tactic.workers.sglang.checks import UnsupportedError

logger = logging.getLogger(__name__)

PROGRAM = "nvidia-cuda-mps-control"
DEVICES = "CUDA_VISIBLE_DEVICES"
PIPES = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
COMMAND_S = 10.0
QUIT_S = 5


def check(config: RefreshConfig) -> None:
    """Finds out whether this machine has what the placement needs.

    Raises:
        UnsupportedError: the MPS control daemon's program is missing.
    """
    if config.uses_mps and PIPES not in os.environ and shutil.which(PROGRAM) is None:
        raise UnsupportedError(
            f"refresh.placement: 'colocated' runs under NVIDIA MPS, but {PROGRAM} is not on PATH. It comes "
            "with the NVIDIA driver (in containers: NVIDIA_DRIVER_CAPABILITIES=compute,utility). Or set "
            "refresh.mps_percentage = 0 to share the GPU in turns, which slows decode steps down"
        )


def directory() -> Path:
    """Where this user's daemon on this machine has its pipes and logs."""
    return Path(tempfile.gettempdir(), f"tactic-mps-{os.getuid()}")


def join(config: RefreshConfig) -> None:
    """Makes a clustering actor's process, which has not touched a GPU yet, a client with a share."""
    if config.uses_mps:
        os.environ.setdefault(PIPES, str(directory()))
        os.environ[SHARE] = str(config.mps_percentage)


class MpsDaemon:
    """The control daemon of this machine, started by the first of its users and ended by the last."""

    def __init__(self, lock: IO[str] | None) -> None:
        self._lock = lock

    @classmethod
    def start(cls, config: RefreshConfig) -> MpsDaemon:
        """Runs the daemon where the placement asks for one, and points this process's children to it.

        A daemon of the operator's, which CUDA_MPS_PIPE_DIRECTORY names, is used as it is.

        Raises:
            UnsupportedError: its program is missing, or it does not start.
        """
        if not config.uses_mps or PIPES in os.environ:
            return cls(None)
        check(config)
        home = directory()
        home.mkdir(mode=0o700, exist_ok=True)
        # Shared as long as the daemon is needed, and by nobody after a crash; whoever ends it has it alone.
        lock = (home / "users").open("w")
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.environ |= {PIPES: str(home), LOGS: str(home)}
        if not _answers():
            # Of all GPUs: clients name devices as the daemon counts them, and others than ours may come.
            everything = {name: value for name, value in os.environ.items() if name != DEVICES}
            started = subprocess.run(
                [PROGRAM, "-d"], capture_output=True, text=True, check=False, env=everything
            )
            if not _answers():
                _leave(lock)
                raise UnsupportedError(
                    f"refresh.placement: {PROGRAM} -d failed: {(started.stderr or started.stdout).strip()}; "
                    f"see {home}/control.log"
                )
            logger.info("MPS runs in %s; clustering actors get %d %%", home, config.mps_percentage)
        return cls(lock)

    def stop(self) -> None:
        """Ends the daemon if nobody else needs it. This process's own clients must be through."""
        if self._lock is None:
            return
        lock, self._lock = self._lock, None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("MPS goes on for others")
        else:
            _command(f"quit -t {QUIT_S}")
        finally:
            _leave(lock)


def _leave(lock: IO[str]) -> None:
    lock.close()
    for name in (PIPES, LOGS):
        del os.environ[name]


def end_client(pid: int) -> None:
    """Ends a client's work on the GPU, before it is killed: else that may take the other clients with it."""
    if PIPES in os.environ:
        for server in (_command("get_server_list") or "").split():
            _command(f"terminate_client {server} {pid}")


def _answers() -> bool:
    return _command("get_server_list") is not None


def _command(text: str) -> str | None:
    """What the daemon says to a command; None if it is not there, or refuses."""
    try:
        done = subprocess.run(
            [PROGRAM], input=text + "\n", capture_output=True, text=True, timeout=COMMAND_S, check=False
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        logger.warning("%s: %s", PROGRAM, error)
        return None
    return done.stdout if done.returncode == 0 else None
