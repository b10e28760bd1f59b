"""Weights from centroids alone: reads no key."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators.base import Estimator, Evidence


@dataclass(frozen=True)
class Centroid(Estimator):
    """Size-weighted centroid mass with a second-order spread correction.

    For members spread around the centroid c with variance σ² in the query's direction,
    Σ exp(q·k) ≈ size · exp(q·c + σ²/2). The spread is taken as isotropic: σ² = |q|² · spread / d.
    """

    name: ClassVar[str] = "centroid"

    def log_mass(self, evidence: Evidence) -> Tensor:
        """See `Estimator.log_mass`."""
        ranking = evidence.ranking
        variance = ranking.query.square().mean(-1, keepdim=True) * ranking.in_order(ranking.index.spread)
        sizes = ranking.in_order(ranking.index.sizes)
        return torch.logcumsumexp(sizes.log() + ranking.scores + variance / 2, dim=-1)
