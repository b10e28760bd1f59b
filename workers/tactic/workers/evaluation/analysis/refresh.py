"""Question (f): how often the index has to be refreshed during a long generation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from tactic.workers.evaluation.analysis.growth import Growing
from tactic.workers.evaluation.analysis.question import Answer
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Samples
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.methods.plain import Dense
from tactic.workers.evaluation.methods.tactic import Tactic
from tactic.workers.evaluation.statistics import Reads

BINS = 32
"""Points of the curves along the generation."""


@dataclass
class RefreshInterval(Answer):
    """A held-out text is continued, each token given, and attended as if it had just been generated.

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
        """Runs all policies over one text; `continuation` follows the prompt that `context` holds."""
        dense_logits: Tensor | None = None
        for name, method in self._policies():
            logits, reads = context.force(continuation, method)
            if dense_logits is None:
                dense_logits = logits
            target = torch.tensor(continuation, device=logits.device)
            nll = torch.nn.functional.cross_entropy(logits[:-1], target, reduction="none")
            late = slice(3 * len(continuation) // 4, None)
            agreed = logits.argmax(-1) == dense_logits.argmax(-1)
            condition: dict[str, Cell] = {
                "context": context.length + 1,
                "generated": len(continuation),
                "refresh": name,
            }
            self._samples.add(
                "text",
                condition,
                {
                    "perplexity": nll.mean().exp().item(),
                    "accuracy": (logits[:-1].argmax(-1) == target).double().mean().item(),
                    "as dense": agreed.double().mean().item(),
                    "share": reads.own_share.mean().item(),
                    "success": (reads.own_share >= self.threshold).double().mean().item(),
                    "selected": reads.selected.double().mean().item(),
                    "read": reads.read.double().mean().item(),
                    "late perplexity": nll[late].mean().exp().item(),
                    "late share": reads.own_share[..., late].mean().item(),
                    "late read": reads.read[..., late].double().mean().item(),
                },
            )
            self._curves.setdefault(name, []).append(_curve(reads))

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        return [
            Table(
                "Refresh interval",
                "What was asked: what becomes of a long generation when its own tokens are clustered every "
                f"so many steps (P = {self.threshold}, `{self.estimator}`). Until then they are the tail, "
                "which is read in full. `never` keeps the prompt's index and reads all generated tokens; "
                f"`never, last {self.window}` keeps it and reads the last {self.window} of them only, so "
                "what is older is lost. The text is given (teacher-forced): perplexity and accuracy are of "
                "its next token, `as dense` is how often the first choice is that of dense attention. Share "
                "and success are per query head, selected per query head and read per KV head; `late` is the "
                f"last quarter of the generation. {INTERVALS}",
                self._samples.rows(),
            )
        ]

    def data(self) -> dict[str, Any]:
        """Share and positions read along the generation, means over the texts; see `Answer.data`."""
        return {
            "curves": [
                {
                    "refresh": name,
                    **{key: _mean([curve[key] for curve in curves]) for key in curves[0]},
                }
                for name, curves in self._curves.items()
            ]
        }

    def _policies(self) -> Iterator[tuple[str, Method]]:
        tactic = Tactic(self.threshold, self.estimator)
        yield "dense", Dense()
        for interval in self.intervals:
            yield f"every {interval}", Growing(tactic, interval)
        yield "never", Growing(tactic, None)
        yield f"never, last {self.window}", Growing(tactic, None, self.window)


def _curve(reads: Reads) -> dict[str, list[float]]:
    """Means over layers and heads in `BINS` equal parts of the generation."""
    parts = {"share": reads.own_share.mean((0, 1)), "read": reads.read.double().mean((0, 1))}
    steps = [part.double().mean().item() for part in torch.arange(reads.read.shape[-1]).tensor_split(BINS)]
    curves = {
        name: [part.mean().item() for part in values.tensor_split(BINS)] for name, values in parts.items()
    }
    return {"step": steps, **curves}


def _mean(curves: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*curves, strict=True)]
