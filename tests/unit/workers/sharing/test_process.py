"""Whether a process is at an end."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tactic.workers.sharing.host import host_identity
from tactic.workers.sharing.process import Process, when_ended


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


async def test_a_killed_process_ends(sleeper: "subprocess.Popen[bytes]") -> None:
    process = Process(sleeper.pid)
    assert not await process.ended(0.01)
    process.kill()
    assert await process.ended(60)
    process.kill()
    # Nobody has waited for it yet; it runs no more all the same.
    assert sleeper.poll() is not None


async def test_the_end_is_told_once(sleeper: "subprocess.Popen[bytes]") -> None:
    calls, told = [], threading.Event()
    when_ended(sleeper.pid, lambda: (calls.append(sleeper.pid), told.set())[1])
    assert not told.is_set()
    sleeper.kill()
    assert await asyncio.to_thread(told.wait, 60)
    assert calls == [sleeper.pid]


def test_there_is_no_such_process() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    with pytest.raises(ProcessLookupError):
        Process(process.pid)
    with pytest.raises(ProcessLookupError):
        when_ended(process.pid, lambda: None)


def test_host_identity_is_that_of_all_processes_here() -> None:
    script = "from tactic.workers.sharing.host import host_identity; print(host_identity())"
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == host_identity()
