"""Question (f): how often the index has to be refreshed during a long generation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from tactic.workers.evaluation.analysis.continuation import FIGURES, compare
from tactic.workers.evaluation.analysis.growth import Growing
from tactic.workers.evaluation.analysis.question import ContinuationQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Samples
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.methods.tactic import Tactic
from tactic.workers.evaluation.statistics import Reads

BINS = 32
"""Points of the curves along the generation."""


@dataclass
class RefreshInterval(ContinuationQuestion):
    """What becomes of a generation whose own tokens are clustered every so often, or never.

    Attributes:
        threshold: P.
        estimator: name of it.
        intervals: decode steps between refreshes.
        window: generated positions that the policy with a limited tail keeps.
    """

    name: ClassVar[str] = "refresh"
    threshold: float
    estimator: str
    intervals: Sequence[int]
    window: int = 512
    _samples: Samples = field(default_factory=Samples)
    _curves: dict[str, list[dict[str, list[float]]]] = field(default_factory=dict)

    def add(self, context: Context, continuation: Sequence[int]) -> None:
        """See `ContinuationQuestion.add`."""
        tactic = Tactic(self.threshold, self.estimator)
        policies = {f"every {interval}": Growing(tactic, interval) for interval in self.intervals}
        policies["never"] = Growing(tactic, None)
        policies[f"never, last {self.window}"] = Growing(tactic, None, self.window)
        for name, figures, reads in compare(context, continuation, policies, self.threshold):
            condition: dict[str, Cell] = {
                "context": context.length + 1,
                "generated": len(continuation),
                "refresh": name,
            }
            self._samples.add("book", condition, figures)
            self._curves.setdefault(name, []).append(_curve(reads))

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        note = (
            "What was asked: what becomes of a long generation when its own tokens are clustered every so "
            f"many steps (P = {self.threshold}, `{self.estimator}`). Until then they are the tail, which is "
            "read in full. `never` keeps the prompt's index and reads all generated tokens; "
            f"`never, last {self.window}` reads the last {self.window} of them only: what is older is lost. "
            f"{FIGURES} {INTERVALS}"
        )
        return [Table("Refresh interval", note, self._samples.rows())]

    def data(self) -> dict[str, Any]:
        """Share and positions read along the generation, means over the texts; see `Answer.data`."""
        return {
            "curves": [
                {"refresh": name, **{key: _mean([curve[key] for curve in curves]) for key in curves[0]}}
                for name, curves in self._curves.items()
            ]
        }


def _curve(reads: Reads) -> dict[str, list[float]]:
    """Means over layers and heads in `BINS` equal parts of the generation."""
    values = {
        "step": torch.arange(reads.read.shape[-1]).double(),
        "share": reads.own_share.mean((0, 1)),
        "read": reads.read.double().mean((0, 1)),
    }
    return {name: [part.mean().item() for part in one.tensor_split(BINS)] for name, one in values.items()}


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]
