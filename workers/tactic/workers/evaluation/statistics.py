"""What was read and what it was worth, per layer, query head and query."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.weights import oracle_count


@dataclass(frozen=True)
class Reads:
    """Figures of m queries in one layer; L x as many fields after `stack`.

    Attributes:
        visible: `[Hq, m]` int64; positions the query sees: what dense attention reads.
        selected: `[Hq, m]` int64; positions that the query head selected itself, sinks and tail included.
        read: `[Hq, m]` int64; positions that its KV head read: the union over the group.
        own_share: `[Hq, m]` fp32; true attention share of what the query head selected.
        share: `[Hq, m]` fp32; true attention share of what its KV head read.
        oracle: `[Hq, m]` int64; fewest positions that reach the threshold; -1 if not measured.
        ideal: `[Hq, m]` int64; positions of a perfect estimate on the method's own order; -1 if none.
    """

    visible: Tensor
    selected: Tensor
    read: Tensor
    own_share: Tensor
    share: Tensor
    oracle: Tensor
    ideal: Tensor

    def first(self, count: int) -> Reads:
        """The figures of the first `count` queries."""
        return Reads(*(getattr(self, each.name)[..., :count] for each in fields(self)))

    def cpu(self) -> Reads:
        """The same in host memory."""
        return Reads(*(getattr(self, each.name).cpu() for each in fields(self)))

    @staticmethod
    def join(parts: list[Reads]) -> Reads:
        """Queries after queries."""
        return Reads(*(torch.cat([getattr(p, each.name) for p in parts], -1) for each in fields(Reads)))

    @staticmethod
    def stack(layers: list[Reads]) -> Reads:
        """Layers over layers: every field becomes `[L, Hq, m]`."""
        return Reads(*(torch.stack([getattr(p, each.name) for p in layers]) for each in fields(Reads)))


def attend(step: Step, method: Method, measure: float | None) -> tuple[Tensor, Reads]:
    """Attention over what a method selects, fp32.

    Args:
        step: the queries.
        method: decides what each query head selects, and what its KV head reads for that.
        measure: P to count the oracle's and the ideal positions for; None leaves them out.

    Returns:
        Output `[H, G, m, d]` fp32 and the figures.
    """
    heads, group, m, _ = step.query.shape
    own = method.select(step)
    read = method.read(step, own)
    chosen = step.logits.masked_fill(~read, -torch.inf)
    reached = chosen.logsumexp(-1)
    weights = torch.exp(chosen - reached[..., None]).view(heads, group * m, -1)
    out = torch.bmm(weights, step.values.transpose(0, 1).float()).view(heads, group, m, -1)

    own_reached = step.logits.masked_fill(~own, -torch.inf).logsumexp(-1)
    unknown = torch.full_like(reached, -1, dtype=torch.int64)
    oracle = ideal = unknown
    if measure is not None:
        oracle = oracle_count(torch.exp(step.logits - step.total[..., None]), measure)
        counted = method.ideal(step, measure)
        ideal = unknown if counted is None else counted
    figures = (
        step.visible.sum(-1).expand_as(unknown),
        own.sum(-1).expand_as(unknown),
        read.sum(-1).expand_as(unknown),
        torch.exp(own_reached - step.total).clamp(max=1),
        torch.exp(reached - step.total).clamp(max=1),
        oracle,
        ideal,
    )
    return out, Reads(*(figure.reshape(heads * group, m) for figure in figures))
