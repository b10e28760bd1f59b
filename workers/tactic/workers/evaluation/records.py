"""Outcomes in a result file: written as rows of values, read back to go on from."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tactic.workers.evaluation.analysis.result import portable
from tactic.workers.evaluation.arguments import given
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.figures import Figures
from tactic.workers.evaluation.outcome import Outcome
from tactic.workers.evaluation.tables import head_figures

# What may differ between two parts of one run: where, how long, and how many samples.
_FREE = {"device", "seconds", "out", "resume", "contexts", "seeds", "tasks"}


@dataclass(frozen=True)
class Earlier:
    """What a result file holds of a run that goes on.

    Attributes:
        outcomes: of all samples; `figures.heads` are means over a context length and method.
        seconds: that the run took so far.
        device: where it ran.
    """

    outcomes: list[Outcome]
    seconds: float
    device: str

    def device_with(self, device: str) -> str:
        """The names of all devices of the run."""
        return device if device in self.device.split("; ") else f"{self.device}; {device}"


def identity(model: Path) -> str:
    """Tells checkpoints apart, wherever they lie: a hash of configuration and weight files' sizes."""
    weights = sorted((file.name, file.stat().st_size) for file in model.glob("*.safetensors"))
    configuration = (model / "config.json").read_bytes() if (model / "config.json").is_file() else b""
    return hashlib.sha256(configuration + repr(weights).encode()).hexdigest()[:16]


def as_record(outcomes: Sequence[Outcome], model: Path) -> dict[str, Any]:
    """Every outcome as a row of values; answers only where they are not wholly right, for reading."""
    rows = []
    for each in outcomes:
        answer = "" if each.score == 1 else each.answer
        plain = asdict(replace(each, answer=answer, figures=replace(each.figures, heads={})))
        plain |= plain.pop("figures")
        del plain["heads"]  # their means stand beside
        rows.append({name: round(x, 5) if isinstance(x, float) else x for name, x in plain.items()})
    table = {"columns": list(rows[0]), "rows": [list(row.values()) for row in rows]}
    return {"checkpoint": identity(model), "heads": head_figures(outcomes), "outcomes": table}


def load_earlier(path: Path, arguments: Namespace) -> Earlier:
    """Reads a result file, to go on from it.

    Args:
        path: `accuracy.json`.
        arguments: of the run that goes on.

    Raises:
        EvaluationError: there is no such file, or its run had other settings.
    """
    try:
        found = json.loads(path.read_text())
        old, record = found["arguments"], found["data"]
        heads = {(row["context"], row["method"], row["P"]): row for row in record["heads"]}
        names = record["outcomes"]["columns"]
        outcomes = [_outcome(dict(zip(names, row, strict=True)), heads) for row in record["outcomes"]["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"--resume: {path} can't be read ({error!r}); run without --resume") from error
    for name, value in given(arguments).items():
        if name not in _FREE and old.get(name) != portable(value):
            raise EvaluationError(
                f"--resume: {path} was made with {name} {old.get(name)}, not {portable(value)}; "
                "choose another --out, or the same settings"
            )
    # Paths are compared by their last part; files of older runs do not tell more.
    if record.get("checkpoint", own := identity(arguments.model)) != own:
        raise EvaluationError(f"--resume: {path} was made with another checkpoint; choose another --out")
    return Earlier(outcomes, found["seconds"], found["device"])


def _outcome(row: dict[str, Any], heads: Mapping[tuple[int, str, float | None], dict[str, Any]]) -> Outcome:
    own = heads.get((row["context"], row["method"], row["threshold"]), {})
    names = Figures.__dataclass_fields__
    figures = {name: row.pop(name) for name in list(row) if name in names}
    by_head: dict[str, list[list[float]]] = {
        name: own[name] for name in ("selected", "oracle", "success") if name in own
    }
    return Outcome(**row, figures=Figures(**figures, heads=by_head))
