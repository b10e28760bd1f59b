"""Ranking by centroid score: the definition (arXiv 2502.12216, section 4.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index.request import RequestIndex


@dataclass(frozen=True)
class Ranking:
    """The clusters of one request in descending order of q·centroid, for each of Hq query heads.

    Flattening the members in that order ranks the positions 0 … `index.ranks` - 1.

    Attributes:
        index: the request's clusters.
        query: `[Hq, d]` fp32, scaled: a dot product with a key is a logit.
        order: `[Hq, K]` int64; cluster at each place.
        scores: `[Hq, K]` fp32; its centroid's logit, descending.
        ends: `[Hq, K]` int64; ranks up to and including it.
    """

    index: RequestIndex
    query: Tensor
    order: Tensor
    scores: Tensor
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


def rank(query: Tensor, index: RequestIndex) -> Ranking:
    """Orders the clusters of a request for each query head.

    Args:
        query: `[Hq, d]` fp32, scaled by 1/√d.
        index: the request's clusters, H KV heads; Hq is a multiple of H.

    Returns:
        The order. Ties go to the lower cluster.
    """
    heads = index.centroids.shape[0]
    grouped = query.view(heads, -1, query.shape[1])
    scores = torch.bmm(grouped, index.centroids.mT).view(query.shape[0], -1)
    ordered = scores.sort(dim=-1, descending=True, stable=True)
    sizes = index.sizes.repeat_interleave(grouped.shape[1], 0).gather(1, ordered.indices)
    return Ranking(index, query, ordered.indices, ordered.values, sizes.cumsum(-1))
