"""The state file: what a deployment consists of, for `status` and `down`."""

import os
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

STATE_FILE = "deployment.json"


class ProcessState(BaseModel):
    """One process of a deployment. Its start time tells it from a later one with the same pid."""

    model_config = ConfigDict(frozen=True)

    name: str
    pid: int
    started: float
    log: Path
    # Seconds between SIGTERM and SIGKILL.
    grace_s: float

    def process(self) -> psutil.Process | None:
        """Returns the running process, or None if it has ended."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started) < 1.0
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self.process() is not None


class DeploymentState(BaseModel):
    """Addresses and processes of a deployment, in the order in which they were started."""

    addresses: list[str] = []
    redis_url: str = ""
    supervisor_address: str = ""
    processes: list[ProcessState] = []

    @property
    def dead(self) -> list[ProcessState]:
        """The processes that have ended although nobody stopped the deployment."""
        return [process for process in self.processes if not process.alive]

    def write(self, state_dir: Path) -> None:
        """Replaces the state file at once, so that a reader never sees half of it."""
        temporary = state_dir / f"{STATE_FILE}.new"
        temporary.write_text(self.model_dump_json(indent=2), encoding="utf-8")
        os.replace(temporary, state_dir / STATE_FILE)


def read_state(state_dir: Path) -> DeploymentState | None:
    """Returns the deployment of `state_dir`; None if there is none, or nothing of it is left to run."""
    try:
        state = DeploymentState.model_validate_json((state_dir / STATE_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return None
    return state if any(process.alive for process in state.processes) else None


def remove_state(state_dir: Path) -> None:
    """Forgets the deployment of `state_dir`."""
    (state_dir / STATE_FILE).unlink(missing_ok=True)
