"""What an estimator is given and what it must return."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from tactic.kernels.index.options import DecodeOptions
from tactic.kernels.ranking.naive import Ranking


@dataclass(frozen=True)
class Evidence:
    """What is known of one request's weights `exp(q·k/√d)` before its clustered keys are read.

    Attributes:
        ranking: the cluster order of each query head.
        k_pool: `[slots, H, d]`, the keys, for estimators that sample.
        slot_ids: `[≥ clustered length]` int64; pool row of each position.
        attended: `[Hq]` fp32; log of the total weight of sinks and tail, which are read anyway; -inf if none.
    """

    ranking: Ranking
    k_pool: Tensor
    slot_ids: Tensor
    attended: Tensor

    def logits(self, ranks: Tensor) -> Tensor:
        """True logits `[Hq, m]` fp32 of the ranks `[m]`; reads those keys only."""
        slots = self.slot_ids[self.ranking.positions(ranks)]
        query, heads = self.ranking.query, self.k_pool.shape[1]
        head = torch.arange(heads, device=slots.device).repeat_interleave(self.ranking.group)[:, None]
        rows = self.k_pool.view(-1, query.shape[1])
        keys = rows.index_select(0, (slots * heads + head).flatten()).float()
        return torch.bmm(keys.view(*slots.shape, -1), query[..., None]).squeeze(-1)


class Estimator(ABC):
    """Estimates how much attention weight each prefix of the cluster order holds.

    Attributes:
        name: in options.
        by_weight: the order that it is made for, see `rank`.
    """

    name: ClassVar[str]
    by_weight: ClassVar[bool] = False

    @classmethod
    def from_options(cls, _options: DecodeOptions) -> Self:
        """The estimator with the settings in `options`."""
        return cls()

    @abstractmethod
    def log_mass(self, evidence: Evidence) -> Tensor:
        """Log of the estimated weight of the first j + 1 clusters, `[Hq, K]` float, non-decreasing."""

    def target(self, evidence: Evidence, threshold: float) -> Tensor:
        """Estimated share to reach, so that the true one is at least `threshold` (0 < P < 1), `[Hq]` fp64."""
        return torch.full_like(evidence.attended, threshold, dtype=torch.float64)

    def ranks(self, evidence: Evidence, threshold: float) -> Tensor:
        """Ranks each query head must read to reach the threshold, whole clusters of them, `[Hq]` int64.

        The fewest clusters that, with sinks and tail, hold the target share of the weight as estimated;
        0 when sinks and tail suffice, all at a threshold of 1.
        """
        ends = evidence.ranking.ends
        if threshold >= 1:
            return ends[:, -1]
        target = self.target(evidence, threshold)
        # What may be left out can be less than fp32 tells from nothing.
        log_mass, attended = self.log_mass(evidence).double(), evidence.attended.double()
        total = torch.logaddexp(log_mass[:, -1], attended)
        share = torch.exp(torch.logaddexp(log_mass, attended[:, None]) - total[:, None])
        # Counted, not searched: a target within rounding of 1 may be above the last share.
        short = (share < target[:, None]).sum(-1, keepdim=True).clamp(max=ends.shape[1] - 1)
        attended_share = torch.exp(attended - total)
        return torch.where(attended_share >= target, 0, ends.gather(1, short).squeeze(1))


def position_logits(query: Tensor, k_pool: Tensor, slot_ids: Tensor) -> Tensor:
    """Logits `[Hq, m]` fp32 of all query heads `[Hq, d]` fp32 (scaled) against the pool rows `[m]`."""
    keys = k_pool.index_select(0, slot_ids).float()
    grouped = query.view(keys.shape[1], -1, query.shape[1])
    return torch.bmm(grouped, keys.permute(1, 2, 0)).view(query.shape[0], -1)
