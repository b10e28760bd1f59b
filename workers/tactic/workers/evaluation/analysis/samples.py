"""Gathers one value per context and condition, and turns them into rows with confidence intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tactic.workers.evaluation.analysis.result import Cell, Row
from tactic.workers.evaluation.ratio import ratio_interval

INTERVALS = "± is half of a 95 % interval over contexts within texts (Student's t)."


class Ratio(NamedTuple):
    """Two means over one context; the row then holds the ratio of their sums over the contexts."""

    above: float
    below: float


@dataclass
class Samples:
    """Values under conditions; rows stand in the order in which their condition was first seen.

    Queries, heads and layers of one context are not independent: they are averaged by the caller, and only
    contexts count as observations.
    """

    _values: dict[tuple[tuple[str, Cell], ...], dict[str, list[tuple[Ratio, str]]]] = field(
        default_factory=dict
    )

    def add(self, text: str, condition: Mapping[str, Cell], values: Mapping[str, float | Ratio]) -> None:
        """One observation, i.e. the means over one context, of a kind of text and under a condition."""
        kept = self._values.setdefault(tuple(condition.items()), {})
        for name, value in values.items():
            ratio = value if isinstance(value, Ratio) else Ratio(value, 1.0)
            kept.setdefault(name, []).append((ratio, text))

    def rows(self) -> list[Row]:
        """A row for each condition: what it is, means and their 95 % intervals, number of observations."""
        rows: list[Row] = []
        for condition, values in self._values.items():
            row: dict[str, Cell] = dict(condition)
            for name, seen in values.items():
                ratios, texts = zip(*seen, strict=True)
                above, below = zip(*ratios, strict=True)
                row[name] = ratio_interval(above, below, texts)
            rows.append({**row, "contexts": max(map(len, values.values()))})
        return rows
