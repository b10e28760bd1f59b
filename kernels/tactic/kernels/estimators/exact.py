"""The oracle: the true weights of the cluster order. For measurement; it reads every key."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators.base import Estimator, Evidence, position_logits


@dataclass(frozen=True)
class Exact(Estimator):
    """A perfect estimate on our cluster order: reaches the threshold with the fewest clusters it allows."""

    name: ClassVar[str] = "exact"

    def log_mass(self, evidence: Evidence) -> Tensor:
        """See `Estimator.log_mass`."""
        ranking = evidence.ranking
        logits = position_logits(ranking.query, evidence.k_pool, evidence.slot_ids[: ranking.index.length])
        ranks = torch.arange(ranking.index.ranks, device=logits.device)
        ranked = logits.gather(1, ranking.positions(ranks))
        return log_prefix_mass(ranked, ranking.ends)


def log_prefix_mass(logits: Tensor, ends: Tensor) -> Tensor:
    """Log of Σ exp over the first `ends` logits: `[Hq, m]` fp32, `[Hq, K]` int64 ≤ m to `[Hq, K]` fp32."""
    if logits.shape[1] == 0:
        return torch.full(ends.shape, -torch.inf, device=ends.device)
    peak = logits.amax(-1, keepdim=True)
    sums = torch.exp(logits - peak).cumsum(-1, dtype=torch.float64)
    sums = torch.nn.functional.pad(sums, (1, 0))
    return (sums.gather(1, ends).log() + peak).float()
