"""Gathers one value per seed and condition, and turns them into rows with confidence intervals."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tactic.workers.evaluation.analysis.interval import mean_interval
from tactic.workers.evaluation.analysis.result import Cell, Row


@dataclass
class Samples:
    """Values under conditions; rows stand in the order in which their condition was first seen."""

    _values: dict[tuple[tuple[str, Cell], ...], dict[str, list[float]]] = field(default_factory=dict)

    def add(self, condition: Mapping[str, Cell], values: Mapping[str, float]) -> None:
        """One observation, i.e. the means over one context, under a condition."""
        kept = self._values.setdefault(tuple(condition.items()), {})
        for name, value in values.items():
            kept.setdefault(name, []).append(value)

    def rows(self) -> list[Row]:
        """A row for each condition: what it is, the means and their 95 % intervals, the observations."""
        return [
            {
                **dict(condition),
                **{name: mean_interval(seen) for name, seen in values.items()},
                "contexts": max(map(len, values.values())),
            }
            for condition, values in self._values.items()
        ]
