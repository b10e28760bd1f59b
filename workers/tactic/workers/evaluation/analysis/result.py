"""What a sub-command writes: rows with all that is needed to repeat them, as JSON and as a Markdown table."""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tactic.workers.evaluation.analysis.interval import Interval

Cell = str | int | float | bool | None | Interval
Row = Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """Rows with the same columns.

    Attributes:
        title: heading.
        note: one or two sentences that say what was asked and what the columns are.
        rows: cells by column name; an `Interval` is shown as mean ± half width.
    """

    title: str
    note: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Result:
    """The answer to one question.

    Attributes:
        question: name of the sub-command; names the files and the plot.
        arguments: of the run, seeds among them.
        tables: the first one is what the plot shows.
        device: where it ran.
        seconds: how long it took.
        data: what the plot needs beyond the tables.
    """

    question: str
    arguments: Mapping[str, object]
    tables: Sequence[Table]
    device: str
    seconds: float
    data: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Writes `<question>.json` and `<question>.md` into the folder, which is made; returns the JSON."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.question}.json"
        path.write_text(json.dumps(self.as_json(), indent=1) + "\n")
        path.with_suffix(".md").write_text(self.as_markdown())
        return path

    def as_json(self) -> dict[str, Any]:
        """All of it in plain types; an interval is `{"mean": …, "half_width": …}`."""
        return {
            "question": self.question,
            "command": " ".join(["tactic eval", *(str(portable(word)) for word in sys.argv[1:])]),
            "arguments": {name: portable(value) for name, value in self.arguments.items()},
            "device": self.device,
            "seconds": round(self.seconds, 1),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
            "tables": [
                {
                    "title": table.title,
                    "note": table.note,
                    "rows": [{name: _plain(cell) for name, cell in row.items()} for row in table.rows],
                }
                for table in self.tables
            ],
            "data": dict(self.data),
        }

    def as_markdown(self) -> str:
        """The tables, each under its heading and above its note."""
        arguments = ", ".join(f"{name} {portable(value)}" for name, value in self.arguments.items())
        lines = [f"# {self.question}", "", f"{self.device}, {self.seconds:.0f} s; {arguments}.", ""]
        for table in self.tables:
            lines += [f"## {table.title}", "", *_markdown_table(table.rows), "", table.note, ""]
        return "\n".join(lines)


def versions() -> dict[str, str]:
    """Of what figures depend on; packages that are not there are left out."""
    found = {"python": platform.python_version()}
    for name in ("tactic", "torch", "triton", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """What the figures were taken on, e.g. "NVIDIA H100 80GB HBM3" or "CPU, 2 threads"."""
    if device == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def portable(value: object) -> object:
    """The value for others to read: of paths outside the working directory the name only."""
    if isinstance(value, str | Path) and Path(value).is_absolute():
        path = Path(value)
        return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name)
    return str(value) if isinstance(value, Path) else value


def _plain(cell: Cell) -> object:
    return cell._asdict() if isinstance(cell, Interval) else cell


def _markdown_table(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return ["(nothing was measured)"]
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_shown(row[name]) for name in columns) + " |" for row in rows]
    return lines


def _shown(cell: Cell) -> str:
    match cell:
        case None:
            return "n/a"
        case Interval(mean, None):
            return _number(mean)
        case Interval(mean, float(half_width)):
            return f"{_number(mean)} ± {_number(half_width)}"
        case bool() | str() | int():
            return str(cell)
        case float():
            return _number(cell)
    raise TypeError(f"a cell is of type {type(cell).__name__}")


def _number(value: float) -> str:
    """Three significant digits, and whole numbers from 100 on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
