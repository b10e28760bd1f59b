"""What was read for one answer, in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tactic.workers.evaluation.statistics import Reads

ROUNDING = 1e-5
"""A share counts as reached from P - 1e-5 on: sums of 131,072 fp32 weights are not more exact."""


@dataclass(frozen=True)
class Figures:
    """Means over decode steps, layers and query heads, unless said otherwise.

    Attributes:
        visible: positions that dense attention reads.
        selected: positions that a query head selected.
        read: positions that its KV head read.
        own_share: true attention share of what the query head selected.
        share: true attention share of what its KV head read.
        low_share: 5th percentile of `own_share`.
        success: share of cases in which `own_share` reached P.
        oracle: fewest positions that reach P; None if not measured.
        ideal: positions of a perfect estimate on the method's own cluster order; None if there is none.
        heads: `selected`, `oracle` and `success` as `[L][Hq]` lists, if the oracle was measured.
    """

    visible: float
    selected: float
    read: float
    own_share: float
    share: float
    low_share: float
    success: float
    oracle: float | None
    ideal: float | None
    heads: dict[str, list[list[float]]]

    @classmethod
    def of(cls, reads: Reads, threshold: float, *, measured: bool) -> Figures:
        """Sums up the reads of an answer; `measured` says whether the oracle was."""
        reached = reads.own_share >= threshold - ROUNDING
        heads = {"selected": reads.selected, "oracle": reads.oracle, "success": reached}
        return cls(
            visible=_mean(reads.visible),
            selected=_mean(reads.selected),
            read=_mean(reads.read),
            own_share=_mean(reads.own_share),
            share=_mean(reads.share),
            low_share=float(reads.own_share.flatten().kthvalue(1 + reads.own_share.numel() // 20).values),
            success=_mean(reached),
            oracle=_mean(reads.oracle) if measured else None,
            ideal=_mean(reads.ideal) if measured and int(reads.ideal.min()) >= 0 else None,
            heads={name: _by_head(values) for name, values in heads.items()} if measured else {},
        )


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def _by_head(values: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in layer] for layer in values.double().mean(-1).tolist()]
