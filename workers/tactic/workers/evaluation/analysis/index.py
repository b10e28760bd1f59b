"""The clusters of a context, built as the decode worker builds them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tactic.kernels.index import MAX_SEGMENT_TOKENS, LayerArena, RequestIndex, SegmentTable, units_in
from tactic.kernels.index.request import ragged_arange
from tactic.kernels.kmeans import kmeans_pool


@dataclass(frozen=True)
class ContextIndex:
    """One layer's index of the first `length` positions, in request slot 0.

    Attributes:
        arena: the clusters.
        table: its segments.
        length: clustered positions.
    """

    arena: LayerArena
    table: SegmentTable
    length: int

    @classmethod
    def build(
        cls, keys: Tensor, length: int, *, cluster_size: int = 32, segment: int = MAX_SEGMENT_TOKENS
    ) -> "ContextIndex":
        """Clusters the first `length` positions of `keys` `[n, H, d]` in segments, the last one shorter."""
        _, heads, dim = keys.shape
        full, rest = divmod(length, segment)
        ids = torch.arange(length, device=keys.device)
        found = []
        if full:
            found += kmeans_pool(keys, ids[: full * segment].view(full, segment), cluster_size).split(full)
        if rest:
            found.append(kmeans_pool(keys, ids[None, full * segment :], cluster_size))
        arena = LayerArena.create(
            heads=heads,
            units=sum(units_in(clusters.members.shape[1]) for clusters in found),
            head_dim=dim,
            cluster_size=cluster_size,
            dtype=keys.dtype,
            device=keys.device,
        )
        table = SegmentTable.create(slots=1, segments=len(found), device=keys.device)
        row, unit = [], 0
        for clusters in found:
            arena.write(unit, clusters)
            row.append((unit, clusters.members.shape[1]))
            unit += units_in(clusters.members.shape[1])
        table.write(0, row)
        return cls(arena, table, length)

    def gather(self, sinks: int) -> RequestIndex:
        """What a decode step sees of it."""
        return RequestIndex.gather(self.arena, self.table, 0, sinks=sinks)

    @property
    def bytes(self) -> int:
        """Memory of the arena."""
        return self.arena.units * self.arena.bytes_per_unit


@dataclass(frozen=True)
class Partition:
    """Any division of the first positions of H KV heads into K clusters.

    Attributes:
        labels: `[H, length]` int64; cluster of each position, K where it is in none (a sink).
        centroids: `[H, K, d]` fp32.
    """

    labels: Tensor
    centroids: Tensor

    @classmethod
    def of_index(cls, index: RequestIndex) -> "Partition":
        """The clusters of an index, its sinks left out."""
        heads, count = index.sizes.shape
        sizes = index.sizes.flatten()
        members = index.members[ragged_arange(index.firsts.flatten(), sizes)]
        cluster = torch.arange(count, device=sizes.device).repeat(heads).repeat_interleave(sizes)
        head = torch.arange(heads, device=sizes.device).repeat_interleave(index.ranks)
        labels = torch.full((heads, index.length), count, device=sizes.device)
        labels[head, members + index.segment_starts[cluster]] = cluster
        return cls(labels, index.centroids)

    @property
    def count(self) -> int:
        """Clusters of each KV head, K."""
        return int(self.centroids.shape[1])

    @cached_property
    def sizes(self) -> Tensor:
        """`[H, K]` int64."""
        return self._sum(torch.ones_like(self.labels), self.labels)

    def mass(self, weights: Tensor) -> Tensor:
        """Weight in each cluster, `[R, K]`, of the rows `[R, ≥ length]`; R / H rows belong to each KV head."""
        heads, length = self.labels.shape
        labels = self.labels.repeat_interleave(weights.shape[0] // heads, 0)
        return self._sum(weights[:, :length], labels)

    def _sum(self, values: Tensor, labels: Tensor) -> Tensor:
        sums = torch.zeros(labels.shape[0], self.count + 1, dtype=values.dtype, device=values.device)
        return sums.scatter_add_(1, labels, values)[:, :-1]
