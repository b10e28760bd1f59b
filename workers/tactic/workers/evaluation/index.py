"""The product's index over a layer's keys, made in the product's pieces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor

from tactic.kernels.index import Clusters, LayerArena, RequestIndex, SegmentTable, clusters_in, units_in
from tactic.kernels.kmeans import kmeans_pool
from tactic.workers.evaluation.layer import Layer

Grouping = Literal["kmeans", "positional"]


@dataclass(frozen=True)
class Index:
    """The clusters of a layer, and which of them each position is in.

    Attributes:
        arena: storage of the clusters.
        table: its segments, in request slot 0.
        clusters: K clusters of each of H KV heads; sinks left out.
        labels: `[H, length]` int64; cluster of each clustered position, K for sinks.
    """

    arena: LayerArena
    table: SegmentTable
    clusters: RequestIndex
    labels: Tensor

    def positions(self, selected: Tensor) -> Tensor:
        """Positions of selected clusters, sinks too: `[H, m, K]` bool to `[H, m, length]` bool."""
        with_sinks = torch.nn.functional.pad(selected, (0, 1), value=True)
        return with_sinks.gather(2, self.labels[:, None].expand(-1, selected.shape[1], -1))


@dataclass(frozen=True)
class BuildIndex:
    """Builds an `Index`; equal settings share one. See `Layer.structure`.

    Attributes:
        cluster_size: average members of a cluster.
        segment_size: positions clustered together.
        grouping: "kmeans", or "positional": blocks of `cluster_size` consecutive positions.
        seed: of k-means; the layer's number is added.
    """

    cluster_size: int = 32
    segment_size: int = 8192
    grouping: Grouping = "kmeans"
    seed: int = 0

    def __call__(self, layer: Layer) -> Index:
        """Clusters the prompt as prefill does: whole segments, then the rest unless it is too short."""
        n, heads, dim = layer.keys.shape
        pieces = list(self.pieces(n))
        units = sum(units_in(length) for _, length in pieces)
        device = layer.keys.device
        arena = LayerArena.create(
            heads=heads,
            units=max(units, 1),
            head_dim=dim,
            cluster_size=self.cluster_size,
            device=device,
        )
        table = SegmentTable.create(slots=1, segments=max(len(pieces), 1), device=device)
        row, unit = [], 0
        for length, equal in groupby(pieces, key=lambda piece: piece[1]):
            starts = torch.tensor([start for start, _ in equal], device=device)
            slot_ids = starts[:, None] + torch.arange(length, device=device)
            for clusters in self._group(layer.keys, slot_ids, layer.number).split(len(starts)):
                arena.write(unit, clusters)
                row.append((unit, length))
                unit += units_in(length)
        table.write(0, row)
        index = RequestIndex.gather(arena, table, 0, sinks=layer.sinks)
        return Index(arena, table, index, labels_of(index))

    def pieces(self, n: int) -> Iterator[tuple[int, int]]:
        """First position and length of each segment of n positions."""
        start = 0
        while n - start >= self.segment_size:
            yield start, self.segment_size
            start += self.segment_size
        if n - start >= 8 * self.cluster_size:
            yield start, n - start

    def _group(self, keys: Tensor, slot_ids: Tensor, layer: int) -> Clusters:
        """Clusters of S segments, segment-major; `slot_ids` `[S, n]`."""
        if self.grouping == "kmeans":
            return kmeans_pool(keys, slot_ids, self.cluster_size, seed=self.seed + layer)
        return _blocks(keys[slot_ids].transpose(1, 2).flatten(0, 1), self.cluster_size)


def _blocks(keys: Tensor, size: int) -> Clusters:
    """Consecutive positions as clusters; keys `[B, n, d]`."""
    heads, n, dim = keys.shape
    count = clusters_in(n, size)
    member = torch.arange(n, device=keys.device)
    label = (member // size).expand(heads, -1)
    sizes = torch.full((heads, count), size, device=keys.device)
    sizes[:, -1] = n - size * (count - 1)
    points = keys.float()
    sums = points.new_zeros(heads, count, dim)
    centroids = sums.scatter_add_(1, label[..., None].expand_as(points), points) / sizes[..., None]
    squares = (points - centroids.gather(1, label[..., None].expand_as(points))).square().sum(-1)
    spread = torch.zeros(heads, count, device=keys.device).scatter_add_(1, label, squares) / sizes
    return Clusters(
        centroids=centroids.to(keys.dtype),
        spread=spread,
        members=member.expand(heads, -1).to(torch.int16),
        starts=(torch.arange(count, device=keys.device) * size).expand(heads, -1).to(torch.int32),
        sizes=sizes.to(torch.int32),
    )


def labels_of(index: RequestIndex) -> Tensor:
    """Cluster of each clustered position, `[H, length]` int64; K for sinks."""
    heads, count = index.sizes.shape
    clusters = torch.arange(count, device=index.sizes.device).expand(heads, -1)
    sizes = index.sizes.flatten()
    begins = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    offsets = torch.arange(begins.shape[0], device=begins.device) - begins
    members = index.members[index.firsts.flatten().repeat_interleave(sizes) + offsets]
    positions = members + index.segment_starts.expand(heads, -1).flatten().repeat_interleave(sizes)
    head = torch.arange(heads, device=begins.device).repeat_interleave(index.sizes.sum(-1))
    labels = torch.full((heads, index.length), count, device=begins.device)
    labels[head, positions] = clusters.flatten().repeat_interleave(sizes)
    return labels
