"""Ranking by centroid: the definition (arXiv 2502.12216, section 4.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index.request import RequestIndex
from tactic.kernels.ranking.levels import levels_of, middles_of


@dataclass(frozen=True)
class Ranking:
    """The clusters of one request in descending order of their scores, for each of Hq query heads.

    Flattening the members in that order ranks the positions 0 … `index.ranks` - 1.

    Attributes:
        index: the request's clusters.
        query: `[Hq, d]` fp32, scaled: a dot product with a key is a logit.
        order: `[Hq, K]` int64; cluster at each place.
        scores: `[Hq, K]` fp32; what it was ordered by, descending.
        levels: `[Hq, K]` int64; of the scores, counted from q·centroid of the request's first cluster.
        log_weights: `[Hq, K]` fp32; log of its members' estimated mean weight.
        ends: `[Hq, K]` int64; ranks up to and including it.
    """

    index: RequestIndex
    query: Tensor
    order: Tensor
    scores: Tensor
    levels: Tensor
    log_weights: Tensor
    ends: Tensor

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self.query.shape[0] // self.index.sizes.shape[0]

    def in_order(self, values: Tensor) -> Tensor:
        """`[H, K]` values of the clusters as `[Hq, K]` in each query head's order."""
        return values.repeat_interleave(self.group, 0).gather(1, self.order)

    def positions(self, ranks: Tensor) -> Tensor:
        """Positions `[Hq, m]` int64 of the ranks `[m]` int64, ascending."""
        heads = self.query.shape[0]
        place = torch.searchsorted(self.ends, ranks.expand(heads, -1).contiguous(), right=True)
        cluster = self.order.gather(1, place)
        sizes = self.index.sizes.repeat_interleave(self.group, 0).gather(1, cluster)
        firsts = self.index.firsts.repeat_interleave(self.group, 0).gather(1, cluster)
        offset = ranks - (self.ends.gather(1, place) - sizes)
        return self.index.members[firsts + offset] + self.index.segment_starts[cluster]


def rank(query: Tensor, index: RequestIndex, *, by_weight: bool = False) -> Ranking:
    """Orders the clusters of a request for each query head.

    The score is q·centroid, as in the paper, or the log of the members' estimated mean weight: for members
    around the centroid c with variance σ² in the query's direction, mean exp(q·k) ≈ exp(q·c + σ²/2). The
    spread is taken as isotropic: σ² = |q|² · spread / d. Such scores are rounded to levels, see `levels.py`.

    Args:
        query: `[Hq, d]` fp32, scaled by 1/√d.
        index: the request's clusters, H KV heads; Hq is a multiple of H.
        by_weight: order by the estimated weight instead of by q·centroid.

    Returns:
        The order. Ties go to the lower cluster.
    """
    heads = index.centroids.shape[0]
    grouped = query.view(heads, -1, query.shape[1])
    logits = torch.bmm(grouped, index.centroids.mT)
    half_variance = grouped.square().mean(-1, keepdim=True) * index.spread[:, None] / 2
    logits, log_weights = (x.view(query.shape[0], -1) for x in (logits, logits + half_variance))
    reference = logits[:, 0]
    levels = levels_of(log_weights if by_weight else logits, reference)
    if by_weight:
        log_weights = middles_of(levels, reference)
    ordered = (log_weights if by_weight else logits).sort(dim=-1, descending=True, stable=True)
    sizes = index.sizes.repeat_interleave(grouped.shape[1], 0).gather(1, ordered.indices)
    levels, log_weights = (x.gather(1, ordered.indices) for x in (levels, log_weights))
    return Ranking(index, query, ordered.indices, ordered.values, levels, log_weights, sizes.cumsum(-1))
