"""Tables of many outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp

import numpy as np
from numpy.typing import NDArray

from tactic.workers.evaluation.analysis.interval import Interval
from tactic.workers.evaluation.analysis.result import Cell, Row, Table
from tactic.workers.evaluation.methods.plain import Dense
from tactic.workers.evaluation.outcome import Outcome
from tactic.workers.evaluation.ratio import ratio_interval

Key = tuple[int, str, float | None]
Sample = tuple[int, str, int]


def all_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """Every table for which there are outcomes."""
    questions = [each for each in outcomes if each.score is not None]
    texts = [each for each in outcomes if each.loss is not None]
    tables = [method_table(outcomes)] if outcomes else []
    tables += [overall_table(outcomes)] if len({each.context for each in outcomes}) > 1 else []
    tables += [task_table(questions)] if questions else []
    tables += [perplexity_table(texts)] if texts else []
    return tables + ([layer_table(outcomes)] if any(each.figures.heads for each in outcomes) else [])


_FIGURES = (
    "Accuracy: mean share of expected strings that an answer holds, as RULER scores, over all tasks. "
    "selected: positions a query head chose; oracle: fewest positions that reach P, of the same queries; "
    "ideal: a perfect estimate on the method's own cluster order; read: positions a KV head read, the "
    "union over its query heads, of those visible. share: true attention share of what a query head "
    "selected (mean, and 5th percentile); success: how often it reached P; share read: of what its KV "
    "head read. Sinks and tail are included. Means over decode steps, layers and heads; ± is half of a "
    "95 % interval over contexts within tasks (Student's t). quest, window and topk read, per KV head "
    "and layer, as many positions as the first tactic method listed here, unless --budget was given."
)


def method_table(outcomes: Sequence[Outcome]) -> Table:
    """Accuracy beside what was read for it."""
    dense = _dense(outcomes)
    rows: list[Row] = [
        {"context": context, "method": method, "P": threshold, **_figures(group, dense)}
        for (context, method, threshold), group in _groups(outcomes)
    ]
    return Table("Methods", _FIGURES, rows)


def overall_table(outcomes: Sequence[Outcome]) -> Table:
    """The same over all context lengths."""
    dense = _dense(outcomes)
    rows: list[Row] = [
        {"method": method, "P": threshold, **_figures(group, dense)}
        for (method, threshold), group in _over_contexts(outcomes)
    ]
    return Table("Methods over all context lengths", "Columns as above; every sample counts the same.", rows)


def _figures(group: Sequence[Outcome], dense: Mapping[Sample, Outcome]) -> Row:
    asked = [each for each in group if each.score is not None]
    better = [(each.score or 0.0) - (dense[_sample(each)].score or 0.0) for each in asked]
    return {
        "accuracy %": _scaled(100, asked, lambda each: each.score or 0.0),
        "lost against dense, points": _lost(group, dense),
        "worse / better": f"{sum(x < 0 for x in better)} / {sum(x > 0 for x in better)}",
        "asked": len(asked),
        "selected": _scaled(1, group, lambda each: each.figures.selected),
        "oracle": _scaled(1, group, lambda each: each.figures.oracle),
        "selected / oracle": _ratio(
            group, lambda each: each.figures.selected, lambda each: each.figures.oracle
        ),
        "ideal / oracle": _ratio(group, lambda each: each.figures.ideal, lambda each: each.figures.oracle),
        "read %": _percent_read(group),
        "share": _scaled(1, group, lambda each: each.figures.own_share),
        "share, 5 %": float(np.mean([each.figures.low_share for each in group])),
        "success %": _scaled(100, group, lambda each: each.figures.success),
        "share read": _scaled(1, group, lambda each: each.figures.share),
    }


@dataclass(frozen=True)
class Comparison:
    """A method beside dense, over all contexts.

    Attributes:
        lost: points of accuracy below dense; None without questions.
        nats: loss per token above dense; None without texts.
        read: share of the positions that KV heads read.
    """

    lost: Interval | None
    nats: Interval | None
    read: float


def comparisons(outcomes: Sequence[Outcome]) -> dict[tuple[str, float | None], Comparison]:
    """Each method and threshold beside dense."""
    dense = _dense(outcomes)
    return {
        key: Comparison(_lost(group, dense), _nats(group, dense), _percent_read(group) / 100)
        for key, group in _over_contexts(outcomes)
    }


def task_table(outcomes: Sequence[Outcome]) -> Table:
    """Accuracy by task, one column a method."""
    columns = {(each.method, each.threshold): None for each in outcomes}
    rows: list[Row] = []
    ordered = sorted(outcomes, key=lambda each: (each.context, each.task))
    for (context, task), group in groupby(ordered, key=lambda each: (each.context, each.task)):
        found = list(group)
        row: dict[str, Cell] = {"context": context, "task": task, "asked": len({_sample(e) for e in found})}
        for method, threshold in columns:
            scores = [e.score or 0.0 for e in found if (e.method, e.threshold) == (method, threshold)]
            name = method if threshold is None else f"{method} {threshold:g}"
            row[name] = 100 * sum(scores) / len(scores) if scores else None
        rows.append(row)
    return Table("Tasks", "Accuracy in % by task; columns are methods at their P.", rows)


def perplexity_table(outcomes: Sequence[Outcome]) -> Table:
    """Perplexity of text that goes on."""
    dense = _dense(outcomes)
    rows: list[Row] = []
    for (context, method, threshold), group in _groups(outcomes):
        rows.append(
            {
                "context": context,
                "method": method,
                "P": threshold,
                "perplexity": exp(sum(each.loss or 0.0 for each in group) / len(group)),
                "loss above dense, nats": _nats(group, dense),
                "texts": len(group),
                "read %": _percent_read(group),
            }
        )
    return Table(
        "Perplexity",
        "Of the next 128 tokens of a book, each decoded by the method. ± is half of a 95 % "
        "interval over texts (Student's t).",
        rows,
    )


def layer_table(outcomes: Sequence[Outcome]) -> Table:
    """Success and reads by layer; heads are in the JSON's `data`."""
    rows: list[Row] = []
    for (context, method, threshold), group in _groups([each for each in outcomes if each.figures.heads]):
        by_name = {name: _head_means(group, name) for name in ("selected", "oracle", "success")}
        for layer in range(len(by_name["success"])):
            selected, oracle, success = (by_name[name][layer] for name in ("selected", "oracle", "success"))
            rows.append(
                {
                    "context": context,
                    "method": method,
                    "P": threshold,
                    "layer": layer,
                    "selected": float(selected.mean()),
                    "oracle": float(oracle.mean()),
                    "selected / oracle": float(selected.sum() / oracle.sum()),
                    "success %": float(100 * success.mean()),
                    "weakest head, success %": float(100 * success.min()),
                }
            )
    return Table("Layers", "The same by layer: means over contexts, decode steps and query heads.", rows)


def head_figures(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Means over contexts for each layer and query head, `[L][Hq]`, of methods that estimate."""
    return [
        {"context": context, "method": method, "P": threshold}
        | {name: _head_means(group, name).round(4).tolist() for name in ("selected", "oracle", "success")}
        for (context, method, threshold), group in _groups([each for each in outcomes if each.figures.heads])
    ]


def _groups(outcomes: Iterable[Outcome]) -> list[tuple[Key, list[Outcome]]]:
    """Outcomes by context, method and threshold; contexts ascending, else in the order of the run."""
    found: dict[Key, list[Outcome]] = {}
    for each in outcomes:
        found.setdefault((each.context, each.method, each.threshold), []).append(each)
    return sorted(found.items(), key=lambda item: item[0][0])


def _over_contexts(outcomes: Iterable[Outcome]) -> list[tuple[tuple[str, float | None], list[Outcome]]]:
    """Outcomes by method and threshold."""
    found: dict[tuple[str, float | None], list[Outcome]] = {}
    for each in outcomes:
        found.setdefault((each.method, each.threshold), []).append(each)
    return list(found.items())


def _stratum(outcome: Outcome) -> tuple[int, str]:
    return outcome.context, outcome.task


def _sample(outcome: Outcome) -> Sample:
    return outcome.context, outcome.task, outcome.seed


def _dense(outcomes: Iterable[Outcome]) -> dict[Sample, Outcome]:
    return {_sample(each): each for each in outcomes if each.method == Dense.name}


def _lost(group: Sequence[Outcome], dense: Mapping[Sample, Outcome]) -> Interval | None:
    """Points of accuracy below dense on the same samples."""
    asked = [each for each in group if each.score is not None]
    return _interval([100 * ((dense[_sample(e)].score or 0.0) - (e.score or 0.0)) for e in asked], asked)


def _nats(group: Sequence[Outcome], dense: Mapping[Sample, Outcome]) -> Interval | None:
    """Loss per token of text above dense on the same samples."""
    texts = [each for each in group if each.loss is not None]
    return _interval([(e.loss or 0.0) - (dense[_sample(e)].loss or 0.0) for e in texts], texts)


def _interval(values: Sequence[float], of: Sequence[Outcome]) -> Interval | None:
    return ratio_interval(values, [1.0] * len(values), [_stratum(each) for each in of]) if values else None


def _scaled(
    factor: float, group: Sequence[Outcome], value: Callable[[Outcome], float | None]
) -> Interval | None:
    values = [value(each) for each in group]
    return _interval([factor * x for x in values if x is not None], group) if None not in values else None


def _ratio(
    group: Sequence[Outcome],
    above: Callable[[Outcome], float | None],
    below: Callable[[Outcome], float | None],
) -> Interval | None:
    pairs = [(above(each), below(each)) for each in group]
    known = [(x, y) for x, y in pairs if x is not None and y is not None]
    if not known or len(known) < len(pairs):
        return None
    return ratio_interval([x for x, _ in known], [y for _, y in known], [_stratum(each) for each in group])


def _percent_read(group: Sequence[Outcome]) -> float:
    return 100 * sum(each.figures.read for each in group) / sum(each.figures.visible for each in group)


def _head_means(group: Sequence[Outcome], name: str) -> NDArray[np.float64]:
    stacked: NDArray[np.float64] = np.array([each.figures.heads[name] for each in group])
    return np.asarray(stacked.mean(0))
