"""The MPS daemon's life, with a program in its place that does what this needs of it."""

import os
from pathlib import Path

import pytest

from tactic.workers.config import RefreshConfig
from tactic.workers.refresh import mps
from tactic.workers.refresh.mps import PIPES, PROGRAM, SHARE, MpsDaemon
from tactic.workers.sglang.checks import UnsupportedError

COLOCATED = RefreshConfig(placement="colocated")
DAEMON = """#!/bin/sh
if [ "$1" = -d ]; then
  [ -e "$CUDA_MPS_PIPE_DIRECTORY/broken" ] && { echo "no device" >&2; exit 1; }
  echo "${CUDA_VISIBLE_DEVICES-all}" > "$CUDA_MPS_PIPE_DIRECTORY/devices"
  exec touch "$CUDA_MPS_PIPE_DIRECTORY/running"
fi
read command rest
[ -e "$CUDA_MPS_PIPE_DIRECTORY/running" ] || exit 1
[ "$command" = quit ] && rm "$CUDA_MPS_PIPE_DIRECTORY/running"
[ "$command" = get_server_list ] && echo 77
[ "$command" = terminate_client ] && echo "$rest" >> "$CUDA_MPS_PIPE_DIRECTORY/terminated"
exit 0
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What MPS leaves in the environment goes with the test."""
    for name in (PIPES, mps.LOGS, SHARE):
        monkeypatch.setenv(name, "")
        del os.environ[name]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The daemon's directory, on a machine that has the program."""
    program = tmp_path / PROGRAM
    program.write_text(DAEMON)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(mps.tempfile, "gettempdir", lambda: str(tmp_path))
    return mps.directory()


def another_process(config: RefreshConfig = COLOCATED) -> MpsDaemon:
    """Starts it as a process would that has no part in it yet."""
    for name in (PIPES, mps.LOGS):
        os.environ.pop(name, None)
    return MpsDaemon.start(config)


def test_the_daemon_serves_all_gpus(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows the second GPU only calls it the first, and its clients, told the second, find none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    daemon = another_process()
    assert (home / "devices").read_text() == "all\n"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    daemon.stop()


def test_the_last_user_ends_the_daemon(home: Path) -> None:
    first = another_process()
    assert os.environ[PIPES] == str(home)
    assert (home / "running").exists()
    second = another_process()
    second.stop()
    assert (home / "running").exists()
    os.environ |= {PIPES: str(home), mps.LOGS: str(home)}
    first.stop()
    assert not (home / "running").exists()
    assert PIPES not in os.environ
    first.stop()


def test_a_daemon_that_a_dead_process_left_is_taken_over(home: Path) -> None:
    home.mkdir()
    (home / "running").touch()
    another_process().stop()
    assert not (home / "running").exists()


def test_a_daemon_of_the_operator_is_left_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPES, "/run/mps")
    MpsDaemon.start(COLOCATED).stop()
    mps.join(COLOCATED)
    assert os.environ[PIPES] == "/run/mps"
    assert not home.exists()


@pytest.mark.parametrize(
    "config",
    [
        RefreshConfig(),
        RefreshConfig(placement="dedicated"),
        RefreshConfig(placement="colocated", mps_percentage=0),
    ],
)
def test_without_need_there_is_no_daemon(home: Path, config: RefreshConfig) -> None:
    MpsDaemon.start(config).stop()
    mps.join(config)
    assert not home.exists()
    assert not os.environ.keys() & {PIPES, SHARE}


def test_only_the_clustering_worker_is_confined(home: Path) -> None:
    daemon = another_process()
    assert SHARE not in os.environ
    mps.join(RefreshConfig(placement="colocated", mps_percentage=25))
    assert (os.environ[PIPES], os.environ[SHARE]) == (str(home), "25")
    daemon.stop()


def test_a_client_is_ended_where_it_works(home: Path) -> None:
    mps.end_client(5)
    daemon = another_process()
    mps.end_client(6)
    assert (home / "terminated").read_text() == "77 6\n"
    daemon.stop()


def test_a_daemon_that_does_not_start(home: Path) -> None:
    home.mkdir()
    (home / "broken").touch()
    with pytest.raises(UnsupportedError, match=r"no device; see .*control\.log"):
        another_process()
    assert PIPES not in os.environ


def test_a_machine_without_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnsupportedError, match=r"refresh.placement: .* is not on PATH"):
        mps.check(COLOCATED)
    mps.check(RefreshConfig(placement="colocated", mps_percentage=0))
