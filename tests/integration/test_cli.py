"""The command line against a running system."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pexpect
import psutil
import pytest

from tactic.service.launch import Deployment, read_state

pytestmark = pytest.mark.engine

COMMAND = [sys.executable, "-W", "error", "-c", "from tactic.service.cli import main; main()"]
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "COLUMNS": "200"}
TEXT = "The magic number for Oslo is 7391846. 한글 é 😀\n" * 60


class Shell:
    """Runs `tactic` against one deployment, in an empty directory."""

    def __init__(self, address: str, directory: Path) -> None:
        self.address = address
        self.directory = directory

    def __call__(self, *args: str, status: int = 0, stdin: str = "") -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [*COMMAND, "--address", self.address, *args],
            cwd=self.directory,
            env=ENVIRONMENT,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert result.returncode == status, result.stderr
        return result

    def json(self, *args: str) -> Any:
        """Runs a command with --json and returns what it prints."""
        return json.loads(self(*args, "--json").stdout)


@pytest.fixture
def shell(deployment: Deployment, tmp_path: Path) -> Shell:
    return Shell(deployment.address, tmp_path)


def test_life_of_a_session(shell: Shell) -> None:
    (shell.directory / "text.txt").write_text(TEXT)
    name = shell("session", "create", "--label", "kind=test").stdout.strip()
    appended = shell.json("session", "append", name, "text.txt")
    assert appended["finished"]
    assert appended["bytes_accepted"] == len(TEXT.encode())
    piped = shell("session", "append", name, "-", stdin="and more").stdout
    assert "tokens appended" in piped
    shown = shell.json("session", "show", name)
    assert shown["token_count"] > appended["tokens_appended"]
    assert shown["labels"] == {"kind": "test"}
    fork = shell("session", "fork", name).stdout.strip()
    assert shell.json("session", "show", fork)["token_count"] == shown["token_count"]
    listed = {session["session_id"] for session in shell.json("session", "list")}
    assert {name, fork} <= listed
    assert name in shell("session", "list").stdout
    shell("session", "delete", name, fork)
    assert "session" in shell("session", "show", name, status=1).stderr


def test_one_question(shell: Shell) -> None:
    answer = shell.json("chat", "-m", "hello", "--max-tokens", "12", "--temperature", "0")
    assert 1 <= answer["completion_tokens"] <= 12
    assert answer["ttft_s"] > 0
    result = shell("chat", "-m", "-", "--max-tokens", "12", "--temperature", "0", stdin="hello")
    assert "first after" in result.stderr
    assert "tokens" not in result.stdout or "tokens" in answer["text"]


def test_a_question_about_a_file_in_a_session_that_is_made_on_the_way(shell: Shell) -> None:
    (shell.directory / "text.txt").write_text(TEXT)
    options = ["--max-tokens", "8", "--session", "from-cli"]
    first = shell.json("chat", "-m", "What is it?", "--file", "text.txt", "--measure", *options)
    assert first["session_id"] == "from-cli"
    assert first["prompt_tokens"] > 1000
    second = shell.json("chat", "-m", "And then?", "--mode", "dense", *options)
    assert second["prompt_tokens"] > first["prompt_tokens"]
    assert second["prefix_tokens_reused"] > 1000
    assert second["kv_read_share"] > 0.999
    shell("session", "delete", "from-cli")


def test_a_refused_option_is_named(shell: Shell) -> None:
    result = shell("chat", "-m", "x", "--threshold", "1.5", status=1)
    assert "threshold" in result.stderr
    assert result.stdout == ""


def test_what_runs(shell: Shell) -> None:
    (model,) = shell.json("models")
    assert model["random_weights"]
    assert model["name"] in shell("models").stdout
    workers = shell.json("workers")
    assert {worker["kind"] for worker in workers} == {"WORKER_KIND_DECODE", "WORKER_KIND_CLUSTERING"}
    status = shell.json("status")
    assert status["frontends"] == [{"address": shell.address, "serving": True}]
    assert "serving" in shell("status").stdout


def test_a_conversation_at_a_terminal(shell: Shell) -> None:
    (shell.directory / "text.txt").write_text(TEXT)
    arguments = ["--address", shell.address, "chat", "--session", "talk", "--max-tokens", "20000"]
    terminal = pexpect.spawn(
        COMMAND[0],
        [*COMMAND[1:], *arguments],
        cwd=str(shell.directory),
        env={**ENVIRONMENT, "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
        encoding="utf-8",
        timeout=120,
        dimensions=(40, 120),
    )
    try:
        terminal.expect("creating session talk")
        terminal.expect(">")
        terminal.send("/session\r")
        terminal.expect("0 tokens, 0 turns")
        terminal.send("/file text.txt\r")
        terminal.expect("tokens appended")
        terminal.send("/file none.txt\r")
        terminal.expect("cannot read none.txt")
        terminal.send("go on for ever\r")
        # Until the turn has begun, Ctrl-C is the prompt's, which ignores it.
        while terminal.expect(["stopped; what was said so far stays", pexpect.TIMEOUT], timeout=2):
            terminal.sendintr()
        terminal.send("/session\r")
        terminal.expect(r"[\d,]+ tokens, [01] turns")
        terminal.send("/quit\r")
        terminal.expect("go on with: tactic chat --session talk")
        terminal.expect(pexpect.EOF)
    finally:
        terminal.close()
    assert terminal.exitstatus == 0
    shell("session", "delete", "talk")


def test_up_status_chat_down(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def tactic(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, "--set", "engine.max_total_tokens=16384", *args],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    up = tactic("up", "--model", str(tiny_checkpoint), "--port", "0", "--context-length", "8192")
    try:
        assert up.returncode == 0, up.stderr
        assert "serving on 127.0.0.1:" in up.stdout
        again = tactic("up", "--model", str(tiny_checkpoint))
        assert again.returncode == 1
        assert "runs already" in again.stderr
        assert tactic("status").returncode == 0
        assert tactic("chat", "-m", "hi", "--max-tokens", "4").returncode == 0
        session = tactic("session", "create", "kept").stdout.strip()
        state = read_state(tmp_path / ".tactic")
        assert state is not None
        frontend = next(process for process in state.processes if process.name.startswith("frontend"))
        os.kill(frontend.pid, signal.SIGKILL)
        status = tactic("status")
        assert status.returncode == 1
        assert "DEAD" in status.stdout
    finally:
        down = tactic("down")
    assert down.returncode == 0
    assert "redis" in down.stdout
    assert state.dead == state.processes
    assert session == "kept"
    assert tactic("status").returncode == 3


def test_an_interrupted_start_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "up", "--model", str(tiny_checkpoint), "--port", "0"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    ) as up:
        assert up.stderr is not None
        for line in up.stderr:
            # At once, while the process is being started: it must not be forgotten.
            if "starting the supervisor" in line:
                break
        up.send_signal(signal.SIGINT)
        up.stderr.read()
        assert up.wait(timeout=60) == 130
    assert read_state(tmp_path / ".tactic") is None
    commands = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]
