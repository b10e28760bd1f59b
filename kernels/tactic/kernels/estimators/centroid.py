"""Weights from centroids alone: reads no key."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators.base import Estimator, Evidence


@dataclass(frozen=True)
class Centroid(Estimator):
    """Size-weighted mean weights of the clusters, see `rank`; they are also the order."""

    name: ClassVar[str] = "centroid"
    by_weight: ClassVar[bool] = True

    def log_mass(self, evidence: Evidence) -> Tensor:
        """See `Estimator.log_mass`."""
        ranking = evidence.ranking
        sizes = ranking.in_order(ranking.index.sizes)
        return torch.logcumsumexp((sizes.log() + ranking.log_weights).double(), dim=-1)
