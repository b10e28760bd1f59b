"""Plots of result files. They need only the JSON, so figures of a GPU host can be drawn elsewhere."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tactic.workers.evaluation.errors import EvaluationError

if TYPE_CHECKING:  # matplotlib is slow to import, and not on every host that measures
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
_PANEL_INCHES = (3.6, 2.9)


def configure(subparsers: Any) -> None:
    """Adds the sub-command `plot`."""
    summary = "draw result files as SVG, beside them"
    parser = subparsers.add_parser("plot", help=summary, description=summary)
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Runs the sub-command; returns the exit status."""
    for path in arguments.results:
        print(draw(path))
    return 0


def draw(path: Path) -> Path:
    """Draws a result file; returns the SVG, which has its name.

    Raises:
        EvaluationError: the file is no result, there is no plot for it, or matplotlib is missing.
    """
    try:
        result = json.loads(path.read_text())
        question, tables = str(result["question"]), [table["rows"] for table in result["tables"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{path} is not a result of `tactic eval`: {error}") from error
    if question not in PLOTS:
        raise EvaluationError(f"{path}: there is no plot for {question!r}, only for {', '.join(PLOTS)}")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError("plots need matplotlib, which is not installed here") from error
    with matplotlib.rc_context({"svg.hashsalt": question, "font.size": 8, "svg.fonttype": "none"}):
        figure = Figure(layout="constrained")
        PLOTS[question](figure, tables, result["data"])
        figure.suptitle(f"{question}, {result['device']}")
        target = path.with_suffix(".svg")
        figure.savefig(target, metadata={"Date": None})
    return target


def _cluster_size(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    quality, cost = tables
    longest = max(row["context"] for row in quality)
    rows = [row for row in quality if row["context"] == longest]
    ratio, success, decode, build = _panels(figure, 4)
    _lines(ratio, rows, "cluster size", "tokens / oracle", "estimator")
    _lines(success, rows, "cluster size", "success", "estimator")
    for axes in (ratio, success):
        axes.set(title=f"context {longest}")
    _lines(decode, cost, "context", "decode ms", "cluster size")
    _lines(build, cost, "context", "build ms", "cluster size")


def _fit(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    longest = max(curve["context"] for curve in data["residuals"])
    residuals, fallbacks = _panels(figure, 2)
    for curve in data["residuals"]:
        if curve["context"] == longest:
            (line,) = residuals.plot(data["rank shares"], curve["mean"], label=curve["kind"])
            residuals.fill_between(
                data["rank shares"], curve["p10"], curve["p90"], alpha=0.12, color=line.get_color()
            )
    residuals.set(
        xscale="log", xlabel=f"share of the ranks, context {longest}", ylabel="estimated - true share"
    )
    residuals.axhline(0, color="black", linewidth=0.5)
    _legend(residuals)
    rows = [row for row in tables[0] if row["context"] == longest]
    _bars(fallbacks, rows, "kind", ("flat", "ends early", "all read", "success"))


def _clusters(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    names = ("silhouette", "recall at 1x", "recall at 4x", "perfect / oracle")
    for axes, name in zip(_panels(figure, len(names)), names, strict=True):
        _lines(axes, tables[0], "context", name, "clusters")


def _gqa(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    divergence, rules = tables
    longest = max(row["context"] for row in divergence)
    agreement, inflation, read, success = _panels(figure, 4)
    rows = [row for row in divergence if row["context"] == longest]
    _bars(agreement, rows, "layer", ("jaccard", "read share", "highest read share"))
    _bars(inflation, rows, "layer", ("inflation",))
    _lines(read, rules, "context", "read share", "rule")
    _lines(success, rules, "context", "success", "rule")


def _refresh(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    share, read = _panels(figure, 2)
    for axes, name, label in ((share, "share", "share reached"), (read, "read", "read per KV head")):
        for curve in data["curves"]:
            axes.plot(curve["step"], curve[name], label=curve["refresh"])
        axes.set(xlabel="generated tokens", ylabel=label)
        _legend(axes)


def _dense_layers(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    rows = [row for row in tables[0] if row["context"] == max(row["context"] for row in tables[0])]
    names = ("loss", "as dense", "read")
    for axes, name in zip(_panels(figure, len(names)), names, strict=True):
        _bars(axes, rows, "dense layers", (name,))


def _sensitivity(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    settings = list(dict.fromkeys(row["setting"] for row in tables[0]))
    for axes, setting in zip(_panels(figure, len(settings)), settings, strict=True):
        rows = [row for row in tables[0] if row["setting"] == setting]
        for context in dict.fromkeys(row["context"] for row in rows):
            chosen = [row for row in rows if row["context"] == context]
            ratios, successes = (
                [_mean(row[name]) for row in chosen] for name in ("tokens / oracle", "success")
            )
            axes.plot(ratios, successes, "o-", markersize=3, label=str(context))
            for x, y, row in zip(ratios, successes, chosen, strict=True):
                axes.annotate(row["value"], (x, y), fontsize=6)
        axes.set(title=setting, xlabel="tokens / oracle", ylabel="success")
        _legend(axes, title="context")


def _accuracy(figure: Figure, tables: Sequence[Sequence[Row]], data: Row) -> None:
    rows = tables[0]
    contexts = list(dict.fromkeys(row["context"] for row in rows))
    for axes, context in zip(_panels(figure, len(contexts)), contexts, strict=True):
        for method in dict.fromkeys(row["method"] for row in rows):
            chosen = [row for row in rows if (row["context"], row["method"]) == (context, method)]
            scores, errors = zip(*(_bounds(row["accuracy %"]) for row in chosen), strict=True)
            axes.errorbar(
                [row["read %"] for row in chosen], scores, errors, marker="o", markersize=3, label=method
            )
        axes.set(title=f"{context} tokens", xlabel="read per KV head, %", ylabel="accuracy, %")
    _legend(axes)


PLOTS: dict[str, Callable[[Figure, Sequence[Sequence[Row]], Row], None]] = {
    "accuracy": _accuracy,
    "cluster-size": _cluster_size,
    "fit": _fit,
    "clusters": _clusters,
    "gqa": _gqa,
    "refresh": _refresh,
    "dense-layers": _dense_layers,
    "sensitivity": _sensitivity,
}


def _panels(figure: Figure, count: int) -> list[Axes]:
    columns = min(count, 4)
    rows = -(-count // columns)
    figure.set_size_inches(columns * _PANEL_INCHES[0], rows * _PANEL_INCHES[1])
    return [figure.add_subplot(rows, columns, place) for place in range(1, count + 1)]


def _lines(axes: Axes, rows: Sequence[Row], x: str, y: str, series: str) -> None:
    """One line with error bars for each value of the column `series`; `x` holds powers of two, or nearly."""
    for name in dict.fromkeys(row[series] for row in rows):
        chosen = [row for row in rows if row[series] == name]
        means, errors = zip(*(_bounds(row[y]) for row in chosen), strict=True)
        axes.errorbar([row[x] for row in chosen], means, errors, marker="o", markersize=3, label=str(name))
    axes.set(xlabel=x, ylabel=y, xscale="log")
    ticks = sorted({row[x] for row in rows})
    axes.set_xticks(ticks, [str(tick) if tick < 1024 else f"{tick / 1024:g}k" for tick in ticks])
    axes.minorticks_off()
    _legend(axes, title=series)


def _bars(axes: Axes, rows: Sequence[Row], x: str, columns: Sequence[str]) -> None:
    """Groups of bars, one for each row."""
    width = 0.8 / len(columns)
    for place, column in enumerate(columns):
        means, errors = zip(*(_bounds(row[column]) for row in rows), strict=True)
        at = [index + (place - (len(columns) - 1) / 2) * width for index in range(len(rows))]
        axes.bar(at, means, width, yerr=errors, label=column)
    axes.set_xticks(range(len(rows)), [str(row[x]) for row in rows])
    axes.set(xlabel=x)
    _legend(axes)


def _legend(axes: Axes, title: str | None = None) -> None:
    """Below the panel, where it hides nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25), ncols=2, fontsize=6, title=title)


def _mean(cell: Any) -> float:
    return _bounds(cell)[0]


def _bounds(cell: Any) -> tuple[float, float]:
    """Mean and half width of a cell; 0 where there is no interval, NaN where there is no value."""
    if isinstance(cell, dict):
        return float(cell["mean"]), float(cell["half_width"] or 0)
    return (float("nan"), 0.0) if cell is None else (float(cell), 0.0)
