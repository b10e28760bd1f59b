import sys
from pathlib import Path

import psutil
import pytest

from tactic.service.launch.errors import LaunchError
from tactic.service.launch.process import Process, terminate

LISTENING = 'print(\'noise\\n{"event": "listening", "address": "127.0.0.1:9"}\')'


def spawn(tmp_path: Path, code: str, grace_s: float = 10.0) -> Process:
    return Process.spawn("child", [sys.executable, "-c", code], tmp_path / "logs", grace_s=grace_s)


def test_address_is_read_and_the_child_is_ended(tmp_path: Path) -> None:
    process = spawn(tmp_path, f"import time; {LISTENING}; time.sleep(600)")
    assert process.listening_address(60) == "127.0.0.1:9"
    assert process.state.alive
    process.terminate()
    assert not process.state.alive


def test_a_child_that_fails_is_quoted(tmp_path: Path) -> None:
    process = spawn(tmp_path, "import sys; sys.exit('no such model')")
    with pytest.raises(LaunchError, match=r"(?s)child ended with status 1 .*no such model"):
        process.listening_address(60)


def test_a_silent_child_is_given_up(tmp_path: Path) -> None:
    process = spawn(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(LaunchError, match="not listening after"):
        process.listening_address(0.1)
    process.terminate()


def test_grandchildren_and_deaf_children_are_killed(tmp_path: Path) -> None:
    code = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
        f"{LISTENING}; time.sleep(600)"
    )
    process = spawn(tmp_path, code, grace_s=0.2)
    process.listening_address(60)
    family = psutil.Process(process.state.pid).children(recursive=True)
    assert len(family) == 1
    process.terminate()
    assert not process.state.alive
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in family)


def test_settings_of_the_parent_are_not_inherited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TACTIC_INDEX__SINKS", "3")
    code = (
        "import os, json; names = [name for name in os.environ if 'TACTIC' in name];"
        "print(json.dumps({'event': 'listening', 'address': ','.join(names)}))"
    )
    process = Process.spawn("child", [sys.executable, "-c", code], tmp_path, tmp_path / "a.toml")
    assert process.listening_address(60) == "TACTIC_CONFIG"
    process.terminate()


def test_another_process_under_the_same_pid_is_left_alone(tmp_path: Path) -> None:
    process = spawn(tmp_path, "import time; time.sleep(600)")
    stale = process.state.model_copy(update={"started": process.state.started - 100})
    assert not stale.alive
    terminate(stale)
    assert process.state.alive
    process.terminate()
