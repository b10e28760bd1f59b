"""Rows, result files and plots."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tactic.workers.evaluation import plots
from tactic.workers.evaluation.__main__ import main
from tactic.workers.evaluation.analysis.interval import Interval, student_quantile
from tactic.workers.evaluation.analysis.result import Result, Table
from tactic.workers.evaluation.analysis.samples import Ratio, Samples
from tactic.workers.evaluation.errors import EvaluationError

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["tactic eval", *map(str, words)])
        return main()

    return run


def test_rows_by_condition_with_intervals_over_contexts() -> None:
    samples = Samples()
    for value in (1.0, 2.0, 3.0):
        samples.add("book", {"context": 4096}, {"share": value, "ratio": Ratio(value, 2 * value)})
    samples.add("book", {"context": 8192}, {"share": 5.0})
    first, second = samples.rows()
    assert first["context"] == 4096
    assert first["contexts"] == 3
    assert first["share"] == pytest.approx((2, student_quantile(2) / 3**0.5))
    assert first["ratio"] == pytest.approx((0.5, 0))
    assert second == {"context": 8192, "share": Interval(5.0, None), "contexts": 1}


def test_a_result_says_how_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["", "fit", "--model", "/elsewhere/checkpoint", "--out", "there"])
    table = Table(
        "Shares", "What was asked.", [{"context": 4096, "share": Interval(0.9, 0.01), "none": None}]
    )
    arguments = {"model": Path("/elsewhere/checkpoint"), "books": tmp_path / "book.txt", "seeds": 3}
    path = Result("fit", arguments, [table], "CPU", 1.5, {"curve": [1.0]}).write(tmp_path / "there")
    read = json.loads(path.read_text())
    assert read["command"] == "tactic eval fit --model checkpoint --out there"
    assert read["arguments"] == {"model": "checkpoint", "books": "book.txt", "seeds": 3}
    assert read["tables"][0]["rows"][0]["share"] == {"mean": 0.9, "half_width": 0.01}
    assert read["versions"]["torch"].startswith("2.")
    assert "| 4096 | 0.9 ± 0.01 | n/a |" in path.with_suffix(".md").read_text()


def test_every_question_is_answered_written_and_drawn(
    tmp_path: Path, tiny_checkpoint: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--contexts", 1100, "--seeds", 2, "--queries", 3, "--texts", "perplexity", "--device", "cpu"]
    arguments += [
        "--generate",
        96,
        "--intervals",
        32,
        "--continued-contexts",
        1100,
        "--estimator",
        "centroid",
    ]
    assert run("all", "--model", tiny_checkpoint, "--out", tmp_path, *arguments) == 0
    answered = {path.stem for path in tmp_path.glob("*.json")}
    assert answered == {path.stem for path in tmp_path.glob("*.md")} == set(plots.PLOTS) - {"accuracy"}
    for path in tmp_path.glob("*.json"):
        rows = json.loads(path.read_text())["tables"][0]["rows"]
        assert rows
        assert all(row["contexts"] == 2 for row in rows if row.get("kind", "all") == "all")
    capsys.readouterr()

    assert run("plot", *sorted(tmp_path.glob("*.json"))) == 0
    for line in capsys.readouterr().out.splitlines():
        drawn = Path(line).read_text()
        assert drawn.startswith("<?xml")
        assert len(drawn) < 200_000


def test_accuracy_is_drawn(
    tmp_path: Path, tiny_checkpoint: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--contexts", 1100, "--seeds", 2, "--tasks", "niah_single_2", "perplexity"]
    arguments += ["--methods", "tactic:centroid", "quest", "--thresholds", 0.5, 0.9, "--device", "cpu"]
    assert run("accuracy", "--model", tiny_checkpoint, "--out", tmp_path, *arguments) == 0
    capsys.readouterr()
    assert run("plot", tmp_path / "accuracy.json") == 0
    drawn = (tmp_path / "accuracy.svg").read_text()
    assert all(name in drawn for name in ("dense", "tactic:centroid", "quest"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--contexts", 512], "--contexts 512 is too short to be clustered, ask for 1024 or more"),
        (["--contexts", "256k"], "exceed the"),
        (["--books", "no-such-book.txt"], "--books no-such-book.txt: no such text"),
    ],
)
def test_wrong_arguments_are_named(
    tmp_path: Path,
    tiny_checkpoint: Path,
    run: Run,
    capsys: pytest.CaptureFixture[str],
    words: list[object],
    message: str,
) -> None:
    command = "refresh" if "256k" in words else "fit"
    assert run(command, "--model", tiny_checkpoint, "--out", tmp_path, *words) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_result_cannot_be_drawn(tmp_path: Path) -> None:
    path = tmp_path / "wrong.json"
    path.write_text("{}")
    with pytest.raises(EvaluationError, match="is not a result of"):
        plots.draw(path)
    path.write_text(json.dumps({"question": "weather", "tables": [], "data": {}, "device": ""}))
    with pytest.raises(EvaluationError, match="no plot for 'weather', only for accuracy"):
        plots.draw(path)
