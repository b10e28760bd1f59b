"""Question (g), second part: what it brings to attend the first layers densely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from tactic.workers.evaluation.analysis.continuation import DENSE, FIGURES, compare
from tactic.workers.evaluation.analysis.question import ContinuationQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Samples
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.methods.tactic import Tactic

DENSE_LAYERS = (0, 1, 2, 3)
STEPS = 512
"""Decode steps that are looked at."""


@dataclass(frozen=True)
class DenseFirst(Method):
    """Another method, but everything is read in the first layers."""

    name: ClassVar[str] = "dense-first"
    method: Method
    layers: int

    def select(self, step: Step) -> Tensor:
        """See `Method.select`."""
        if step.layer.number < self.layers:
            return step.visible.expand(step.logits.shape)
        return self.method.select(step)


@dataclass
class DenseLayers(ContinuationQuestion):
    """Loss and reads of a text whose first layers are attended densely.

    Attributes:
        threshold: P.
        estimator: name of it.
    """

    name: ClassVar[str] = "dense-layers"
    threshold: float
    estimator: str
    _samples: Samples = field(default_factory=Samples)

    def add(self, context: Context, continuation: Sequence[int]) -> None:
        """See `ContinuationQuestion.add`."""
        tactic = Tactic(self.threshold, self.estimator)
        methods = {
            f"first {count}" if count else "none": DenseFirst(tactic, count)
            for count in DENSE_LAYERS
            if count < len(context.layers)
        }
        for name, figures, _ in compare(context, continuation[:STEPS], methods, self.threshold):
            condition: dict[str, Cell] = {
                "context": context.length + 1,
                "dense layers": "all" if name == DENSE else name,
            }
            kept = {key: value for key, value in figures.items() if not key.startswith("late")}
            self._samples.add("book", condition, kept)

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        note = (
            "What was asked: whether sparse attention in the first layers costs more than it saves "
            f"(P = {self.threshold}, `{self.estimator}`). {FIGURES} Read is a mean over the layers. "
            f"{INTERVALS}"
        )
        return [Table("Dense first layers", note, self._samples.rows())]
