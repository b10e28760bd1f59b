"""Child processes that outlive the command that started them, with a log each."""

import json
import os
import subprocess
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tactic.service.launch.errors import LaunchError
from tactic.service.launch.state import ProcessState

POLL_S = 0.05


@dataclass
class Process:
    """A started child. Its stderr goes to `<logs>/<name>.log`, its stdout to `<logs>/<name>.out`."""

    state: ProcessState
    popen: subprocess.Popen[bytes]

    @classmethod
    def spawn(
        cls, name: str, command: list[str], logs: Path, config: Path | None = None, grace_s: float = 10.0
    ) -> "Process":
        """Starts `command` in a session of its own, so that the terminal's Ctrl-C does not reach it.

        Args:
            name: what messages and log files call it.
            command: program and arguments.
            logs: directory of the log files; created.
            config: its TACTIC_CONFIG. Other TACTIC_* are not inherited: the file holds what they said.
            grace_s: seconds between SIGTERM and SIGKILL when it is stopped.
        """
        logs.mkdir(parents=True, exist_ok=True)
        log, out = logs / f"{name}.log", logs / f"{name}.out"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TACTIC_")}
        environment["PYTHONUNBUFFERED"] = "1"
        if config is not None:
            environment["TACTIC_CONFIG"] = str(config)
        with log.open("ab") as stderr, out.open("wb") as stdout:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        started = psutil.Process(popen.pid).create_time()
        return cls(ProcessState(name=name, pid=popen.pid, started=started, log=log, grace_s=grace_s), popen)

    def listening_address(self, timeout_s: float) -> str:
        """Waits for the line {"event": "listening", "address": "host:port"} on the child's stdout.

        Raises:
            LaunchError: if the child ends first or is silent for too long; carries the end of its log.
        """
        deadline = time.monotonic() + timeout_s
        out = self.state.log.with_suffix(".out")
        while time.monotonic() < deadline:
            alive = self.popen.poll() is None
            for line in out.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
                if line.endswith("\n") and (event := _json_object(line)).get("event") == "listening":
                    return str(event["address"])
            if not alive:
                raise self.failure(f"ended with status {self.popen.returncode} before it was listening")
            time.sleep(POLL_S)
        raise self.failure(f"was not listening after {timeout_s:.0f} s")

    def check_alive(self) -> None:
        """Raises LaunchError, with the end of its log, if the child has ended."""
        if self.popen.poll() is not None:
            raise self.failure(f"ended with status {self.popen.returncode}")

    def failure(self, what: str) -> LaunchError:
        """Builds an error about this child that quotes the end of its log."""
        lines = self.state.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        quoted = "\n".join(f"  | {line}" for line in lines)
        return LaunchError(f"{self.state.name} {what}; the end of {self.state.log}:\n{quoted}")

    def terminate(self) -> None:
        """Ends the child and all its descendants, and reaps it."""
        terminate(self.state)
        self.popen.wait()


def terminate(state: ProcessState) -> None:
    """Sends SIGTERM, waits for the process's grace, then kills what is left of its tree."""
    process = state.process()
    if process is None:
        return
    family = [process, *_descendants(process)]
    with suppress(psutil.NoSuchProcess):
        process.terminate()
    psutil.wait_procs([process], timeout=state.grace_s)
    _, left = psutil.wait_procs(family, timeout=1.0)
    for survivor in left:
        with suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(left, timeout=5.0)


def _descendants(process: psutil.Process) -> Iterable[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _json_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
