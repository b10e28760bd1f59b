"""`tactic status`: 0 only if all is well."""

import os
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from tactic.service.cli import _deployment
from tactic.service.cli._main import app
from tactic.service.launch import DeploymentState, ProcessState

ADDRESS = "127.0.0.1:7700"


def stats(worker_state: str = "WORKER_STATE_READY") -> dict[str, Any]:
    worker = {"worker_id": "decode-0", "state": worker_state, "device": "cpu", "restarts": 0}
    return {"models": [], "sessions": 0, "turns_running": 0, "workers": [worker]}


@pytest.mark.parametrize("output", [[], ["--json"]])
@pytest.mark.parametrize(
    ("addresses", "serving", "found", "status"),
    [
        ([ADDRESS], True, stats(), 0),
        ([ADDRESS], True, stats("WORKER_STATE_STARTING"), 0),
        ([ADDRESS], True, stats("WORKER_STATE_DEAD"), 1),
        ([ADDRESS], False, stats(), 1),
        ([ADDRESS], True, {"error": "no front end answers"}, 1),
        ([], True, {"error": "no front end answers"}, 1),
        ([], True, stats(), 1),
    ],
)
def test_status_tells_whether_all_is_well(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    output: list[str],
    addresses: list[str],
    serving: bool,
    found: dict[str, Any],
    status: int,
) -> None:
    own = psutil.Process(os.getpid())
    process = ProcessState(
        name="frontend-0", pid=own.pid, started=own.create_time(), log=tmp_path / "log", grace_s=1
    )
    DeploymentState(addresses=addresses, processes=[process]).write(tmp_path)

    async def told(options: Any) -> dict[str, Any]:
        return found

    monkeypatch.setattr(_deployment, "_deployment_stats", told)
    monkeypatch.setattr(_deployment, "is_serving", lambda address: serving)
    result = CliRunner().invoke(app, ["--state-dir", str(tmp_path), "status", *output])
    assert result.exit_code == status, result.output
