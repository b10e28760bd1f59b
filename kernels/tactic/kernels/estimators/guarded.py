"""Weights from centroids, guarded against what such an estimate may be wrong by."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators.base import Evidence
from tactic.kernels.estimators.centroid import Centroid


@dataclass(frozen=True)
class Guarded(Centroid):
    """`Centroid` that aims above the threshold, the higher the less a head's centroids tell.

    An estimated share is wrong, in log-odds, by an amount that grows with the variance v of the logits inside
    the clusters: on the reference model one in twenty is too high by about 0.15 v or more, for v from 0.1
    (attention is even) to 8 (a head looks for single tokens, whose keys lie in clusters of dozens); the slope
    is a third more than that. So the share aimed at is P' with

        logit(P') = logit(P) + min(margin + slope · v, most),   v = |q|² · S / d,

    S being the mean squared distance of the request's keys to their centroids. And some tokens of the best
    clusters are read even where sinks and tail seem to suffice: a key several standard deviations from its
    centroid can outweigh them all, and its cluster is mostly among the first.

    Attributes:
        margin: added to the log-odds of the threshold.
        slope: added for each unit of variance.
        most: added at most, far above what was measured; keeps what may be left out above rounding errors.
        least: ranks that are read at least, if there are so many.
    """

    name: ClassVar[str] = "guarded"
    margin: float = 0.05
    slope: float = 0.2
    most: float = 5.0
    least: int = 256

    def target(self, evidence: Evidence, threshold: float) -> Tensor:
        """See `Estimator.target`."""
        ranking = evidence.ranking
        index, query = ranking.index, ranking.query
        sizes = index.sizes.float()
        spread = (sizes * index.spread).sum(-1) / sizes.sum(-1)
        variance = query.square().mean(-1) * spread.repeat_interleave(ranking.group)
        headroom = (self.margin + self.slope * variance).clamp(max=self.most).double()
        return torch.sigmoid(headroom.new_tensor(threshold).logit() + headroom)

    def ranks(self, evidence: Evidence, threshold: float) -> Tensor:
        """See `Estimator.ranks`; at least `least`."""
        ranks = super().ranks(evidence, threshold)
        return torch.maximum(ranks, evidence.ranking.ends[:, -1].clamp(max=self.least))
