"""The command line as a user meets it: a real process, its streams and its exit status."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tactic.service.config import load_settings

# Says that it waits for the question, and waits.
READS_ALOUD = """
import sys

class Input:
    def __init__(self, source):
        self.source = source

    def read(self):
        print("reading", flush=True)
        return self.source.read()

sys.stdin = Input(sys.stdin)
from tactic.service.cli import main
main()
"""


def tactic(*args: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", "from tactic.service.cli import main; main()", *args]
    return subprocess.run(
        command,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (
            ["--address", "127.0.0.1:1", "session", "list"],
            3,
            "no front end answers at 127.0.0.1:1: start one",
        ),
        (["--address", "nonsense", "models"], 3, "no front end answers at nonsense"),
        (["--address", "127.0.0.1:99999", "models"], 3, "no front end answers at 127.0.0.1:99999"),
        (["status"], 3, "nothing runs in .tactic"),
        (["--state-dir", sys.executable + "/x", "status"], 3, "nothing runs in"),
        (["--state-dir", sys.executable + "/x", "up", "--model", "."], 1, "Not a directory"),
        (["up"], 2, "engine.model_path is not set"),
        (["up", "--model", "nowhere"], 1, "nowhere is not a directory"),
        (["up", "--port", "-1"], 2, "frontend.port: input should be greater than or equal to 0"),
        (["--set", "index.sinks", "config", "show"], 2, "write NAME=VALUE"),
        (["--config", "none.toml", "config", "show"], 2, "none.toml does not exist"),
        (["chat", "--mode", "sparse", "-m", "x"], 2, "choose tactic or dense"),
        (["chat", "--json"], 2, "--json needs a question"),
        (["session", "create", "--label", "x"], 2, "write KEY=VALUE"),
    ],
)
def test_failures_are_one_line_and_a_status(tmp_path: Path, args: list[str], status: int, words: str) -> None:
    result = tactic(*args, cwd=tmp_path)
    assert result.returncode == status
    assert result.stdout == ""
    assert words in result.stderr
    assert result.stderr.startswith("tactic: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("--max-tokens", "-1"), ("--max-tokens", str(2**32)), ("--seed", "-1"), ("--seed", str(2**63))],
)
def test_numbers_out_of_range_are_wrong_usage(tmp_path: Path, option: str, value: str) -> None:
    result = tactic("chat", "-m", "x", option, value, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"Invalid value for '{option}': " in result.stderr


def test_question_from_standard_input_can_be_interrupted(tmp_path: Path) -> None:
    # It would be read only once somebody answers, if it were read by the event loop.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        command = [sys.executable, "-c", READS_ALOUD, "--address", address, "chat", "-m", "-"]
        with subprocess.Popen(
            command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            try:
                assert process.stdout.readline() == b"reading\n"
                process.send_signal(signal.SIGINT)
                # Its standard input stays open.
                assert process.wait(timeout=20) == 130
                assert process.stderr.read() == b""
            finally:
                process.kill()


def test_down_without_deployment_is_no_failure(tmp_path: Path) -> None:
    result = tactic("down", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, "nothing runs in .tactic\n")


def test_config_show_names_values_and_origins(tmp_path: Path) -> None:
    (tmp_path / "tactic.toml").write_text("[refresh]\ninterval = 64\n")
    result = tactic(
        "--set", "index.sinks=4", "config", "show", "--json", cwd=tmp_path, TACTIC_INDEX__THRESHOLD="0.8"
    )
    shown = json.loads(result.stdout)
    assert shown["index.sinks"] == {"value": 4, "origin": "flag"}
    assert shown["index.threshold"] == {"value": 0.8, "origin": "environment TACTIC_INDEX__THRESHOLD"}
    assert shown["refresh.interval"] == {"value": 64, "origin": "tactic.toml"}
    assert shown["frontend.port"] == {"value": 7700, "origin": "default"}
    assert "0.8" in tactic("config", "show", cwd=tmp_path, TACTIC_INDEX__THRESHOLD="0.8").stdout


def test_config_show_writes_a_file_that_reads_back(tmp_path: Path) -> None:
    result = tactic("--set", "index.sinks=4", "config", "show", "--toml", cwd=tmp_path)
    (tmp_path / "out.toml").write_text(result.stdout)
    assert load_settings(config_file=tmp_path / "out.toml").settings.index.sinks == 4


@pytest.mark.parametrize(
    "command", [[], ["up"], ["chat"], ["session"], ["session", "append"], ["config", "show"]]
)
def test_help_explains_every_option(tmp_path: Path, command: list[str]) -> None:
    result = tactic(*command, "--help", cwd=tmp_path)
    assert result.returncode == 0
    assert "Usage: " in result.stdout
