"""What the command line accepts and refuses."""

import sys
from pathlib import Path

import pytest

from tactic.workers.evaluation.__main__ import main
from tactic.workers.evaluation.arguments import tokens


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tactic eval", *arguments])
    return main()


@pytest.mark.parametrize(("text", "count"), [("4096", 4096), ("16k", 16384), ("128K", 131072)])
def test_lengths(text: str, count: int) -> None:
    assert tokens(text) == count


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("accuracy", "--contexts", "1m"), "'1m' is not a number of tokens, such as 4096 or 16k"),
        (("accuracy", "--thresholds", "1.5"), "'1.5' must be a number above 0 and at most 1"),
        (("accuracy", "--seeds", "0"), "'0' must be an integer, at least 1"),
        (("engine", "--estimator", "best"), "invalid choice: 'best'"),
        (("nothing",), "invalid choice: 'nothing'"),
    ],
)
def test_wrong_usage_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, *arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", ["accuracy", "engine"])
def test_what_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    command: str,
) -> None:
    model = ("--model", str(tiny_checkpoint), "--device", "cpu", "--out", str(tmp_path / "out"))
    assert run(monkeypatch, command, "--model", str(tmp_path), *model[2:]) == 1
    assert f"--model: no checkpoint at '{tmp_path}'" in capsys.readouterr().err
    assert run(monkeypatch, command, *model, "--books", str(tmp_path / "none")) == 1
    assert "--books" in capsys.readouterr().err
    assert run(monkeypatch, command, *model, "--contexts", "256k") == 1
    assert "--contexts 262144" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_methods_are_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ("--model", str(tmp_path), "--out", str(tmp_path), "--methods", "best")
    assert run(monkeypatch, "accuracy", *arguments) == 1
    assert "--methods best is unknown" in capsys.readouterr().err
