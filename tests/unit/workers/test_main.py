"""What `python -m tactic.workers` refuses before it starts anything."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tactic.workers.__main__ import EXIT_BAD_SPEC, main


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a spec leaves in the environment goes with the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.fixture
def spec(tiny_checkpoint: Path) -> dict[str, Any]:
    return {
        "engine": {"modelPath": str(tiny_checkpoint), "device": "cpu"},
        "index": {"segmentSize": 2048},
        "refresh": {"enabled": True, "interval": 64},
        "decodeWorkers": 1,
    }


def run(monkeypatch: pytest.MonkeyPatch, file: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["tactic.workers", "--spec", str(file)])
    return main()


@pytest.mark.parametrize(
    ("part", "change", "match"),
    [
        ("engine", {"modelPath": "/nowhere"}, "engine.model_path: no checkpoint at '/nowhere'"),
        ("engine", {"tensorParallel": 4}, "engine.tensor_parallel = 4"),
        ("index", {"segmentSize": 1000}, "segment_size"),
        ("index", {"threshold": 1.5}, "threshold"),
        ("refresh", {"enabled": True, "interval": 4096}, "refresh.interval = 4096 must not exceed"),
        ("refresh", {"placement": "colocated"}, "refresh.placement"),
        ("refresh", {"placement": "dedicated"}, "refresh.placement"),
        ("engine", {"noSuchField": 1}, "noSuchField"),
    ],
)
def test_a_bad_spec_is_refused_by_name(
    spec: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    part: str,
    change: dict[str, Any],
    match: str,
) -> None:
    spec[part] |= change
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec))
    assert run(monkeypatch, file) == EXIT_BAD_SPEC
    assert match in capsys.readouterr().err


def test_no_decode_worker(
    spec: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del spec["decodeWorkers"]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    assert run(monkeypatch, tmp_path / "spec.json") == EXIT_BAD_SPEC
    assert "decode_workers: at least one" in capsys.readouterr().err


def test_no_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, tmp_path / "missing.json") == EXIT_BAD_SPEC
    assert "missing.json" in capsys.readouterr().err
