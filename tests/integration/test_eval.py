"""`tactic eval` on the reference model, as a user calls it."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tactic.service.config import load_settings

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "deploy" / "reference-model" / "checkpoint"
BOOK = ROOT / "deploy" / "quickstart" / "book.txt.xz"
COMMAND = [sys.executable, "-c", "from tactic.service.cli import main; main()", "eval"]


def evaluate(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )
    assert result.returncode == status, result.stderr
    return result


@pytest.fixture(scope="module")
def shared() -> list[str]:
    return ["--model", str(MODEL), "--books", str(BOOK), "--contexts", "2k", "--style", "reference"]


def test_accuracy(tmp_path: Path, shared: list[str]) -> None:
    methods = ["--methods", "oracle", "tactic:fit", "quest", "window"]
    tasks = ["--tasks", "niah_single_2", "qa_1"]
    result = evaluate("accuracy", *shared, "--seeds", "1", *methods, *tasks, "--out", str(tmp_path))
    assert "0 of 2" in result.stderr
    assert result.stdout.startswith("# accuracy")
    written = json.loads((tmp_path / "accuracy.json").read_text())
    rows = {row["method"]: row for row in written["tables"][0]["rows"]}
    assert rows["dense"]["accuracy %"]["mean"] == 100
    # The window has lost what was asked for; Tactic reads as much, and has it.
    assert rows["window"]["accuracy %"]["mean"] == 0
    assert rows["tactic:fit"]["accuracy %"]["mean"] == 100
    assert rows["tactic:fit"]["read %"] == pytest.approx(rows["quest"]["read %"], abs=1)
    assert rows["tactic:fit"]["read %"] < 60
    assert rows["tactic:fit"]["oracle"]["mean"] < rows["tactic:fit"]["selected"]["mean"]


def test_calibration_writes_what_up_takes(tmp_path: Path, shared: list[str]) -> None:
    file = tmp_path / "calibrated.toml"
    candidates = ["--thresholds", "0.9", "0.99", "--estimators", "centroid", "--seeds", "1"]
    bounds = ["--max-lost", "50", "--max-nats", "1"]
    result = evaluate("calibrate", *shared, *candidates, *bounds, "--out", str(file))
    assert "| centroid | 0.99 |" in result.stdout
    settings: Any = load_settings({}, file).settings
    assert settings.engine.model_path == MODEL
    assert settings.index.estimator == "centroid"
    assert settings.index.threshold in (0.9, 0.99)
    assert set(tomllib.loads(file.read_text())) == {"engine", "index"}


def test_failures_keep_their_status_and_message(tmp_path: Path) -> None:
    result = evaluate("accuracy", "--model", str(tmp_path), "--out", str(tmp_path), status=1)
    assert "--model: no checkpoint at" in result.stderr
    assert "COMMAND" in evaluate().stdout


@pytest.mark.engine
def test_the_engine_answers_as_the_model_does(tmp_path: Path, shared: list[str]) -> None:
    tasks = ["--tasks", "niah_single_2"]
    evaluate("engine", *shared, "--seeds", "1", *tasks, "--out", str(tmp_path), "--device", "cpu")
    rows = json.loads((tmp_path / "engine.json").read_text())["tables"][0]["rows"]
    assert [row["mode"] for row in rows] == ["dense", "P = 1", "P = 0.9"]
    assert all(row["accuracy %"]["mean"] == 100 for row in rows)
    assert rows[1]["same tokens as dense %"] == 100
    assert rows[1]["read %"] == pytest.approx(100)
    assert rows[2]["read %"] < 60
