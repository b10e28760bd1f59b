"""What the command line accepts and refuses."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tactic.workers.evaluation.__main__ import main
from tactic.workers.evaluation.arguments import questions, tokens


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
        (("accuracy", "--tasks", "niah_single_2", "qa_9"), "invalid choice: 'qa_9'"),
        (("engine", "--tasks", "perplexity"), "invalid choice: 'perplexity'"),
        (("accuracy", "--out", __file__), "is a file; name a folder"),
        (("calibrate", "--out", str(Path(__file__).parent)), "is a folder; name the file to write"),
        (("calibrate", "--out", "no such folder/x.toml"), "there is no folder 'no such folder'"),
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
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    assert run(monkeypatch, command, *model, "--books", str(tmp_path / "latin.txt")) == 1
    assert "latin.txt is no UTF-8 text" in capsys.readouterr().err
    assert run(monkeypatch, command, *model, "--contexts", "256k") == 1
    assert "--contexts 262144" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_sample_that_is_named_twice_is_asked_once() -> None:
    arguments = Namespace(seeds=2, contexts=[1024, 1024], tasks=["vt", "vt"])
    assert questions(arguments) == [(0, 1024, "vt"), (1, 1024, "vt")]


def test_unknown_methods_are_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ("--model", str(tmp_path), "--out", str(tmp_path), "--methods", "best")
    assert run(monkeypatch, "accuracy", *arguments) == 1
    assert "--methods best is unknown" in capsys.readouterr().err
