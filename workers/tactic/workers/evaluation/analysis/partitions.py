"""Divisions of a context into clusters: those of an index, and those to compare it with."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tactic.kernels.index import RequestIndex, clusters_in
from tactic.kernels.kmeans.naive import initial_positions
from tactic.kernels.kmeans.refill import refill_empty
from tactic.workers.evaluation.index import labels_of

_WORKSPACE_ELEMENTS = 1 << 26  # distances held at once, 256 MiB of fp32


@dataclass(frozen=True)
class Partition:
    """The first positions of H KV heads in K clusters.

    Attributes:
        labels: `[H, length]` int64; cluster of each position, K where it is in none (a sink).
        centroids: `[H, K, d]` fp32.
    """

    labels: Tensor
    centroids: Tensor

    @classmethod
    def of_index(cls, index: RequestIndex) -> "Partition":
        """The clusters of an index, its sinks left out."""
        return cls(labels_of(index), index.centroids)

    @property
    def count(self) -> int:
        """Clusters of each KV head, K."""
        return int(self.centroids.shape[1])

    @cached_property
    def sizes(self) -> Tensor:
        """`[H, K]` int64."""
        return self._sum(torch.ones_like(self.labels), self.labels)

    def without(self, sinks: int) -> "Partition":
        """The same clusters, the first positions in none of them."""
        labels = self.labels.clone()
        labels[:, :sinks] = self.count
        return Partition(labels, self.centroids)

    def mass(self, weights: Tensor) -> Tensor:
        """Weight in each cluster, `[R, K]`, of the rows `[R, ≥ length]`; R / H in turn are of one KV head."""
        heads, length = self.labels.shape
        labels = self.labels.repeat_interleave(weights.shape[0] // heads, 0)
        return self._sum(weights[:, :length], labels)

    def _sum(self, values: Tensor, labels: Tensor) -> Tensor:
        sums = torch.zeros(labels.shape[0], self.count + 1, dtype=values.dtype, device=values.device)
        return sums.scatter_add_(1, labels, values)[:, :-1]


def global_kmeans(keys: Tensor, cluster_size: int, *, max_iters: int = 10, seed: int = 0) -> Partition:
    """Lloyd's algorithm over the whole context at once, as in the paper: O(n²), no segments.

    Args:
        keys: `[n, H, d]`, any float dtype.
        cluster_size: average members of a cluster.
        max_iters: iterations at most.
        seed: of the keys that are the first centroids.
    """
    points = keys.transpose(0, 1).float()
    length = points.shape[1]
    count = clusters_in(length, cluster_size)
    centroids = points[:, initial_positions(length, count, seed).to(keys.device)]
    labels = torch.full(points.shape[:2], -1, device=keys.device)
    for _ in range(max_iters):
        previous = labels
        labels, distances = _assign(points, centroids)
        refill_empty(labels, distances, count)
        centroids = _means(points, labels, count)
        if torch.equal(labels, previous):
            break
    return Partition(labels, centroids)


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each point and the squared distance to it, both `[H, n]`."""
    norms = centroids.square().sum(-1)[:, None]
    labels, distances = [], []
    for chunk in torch.split(points, max(1, _WORKSPACE_ELEMENTS // norms.numel()), dim=1):
        nearest = torch.baddbmm(norms, chunk, centroids.mT, alpha=-2).min(-1)
        labels.append(nearest.indices)
        distances.append(nearest.values + chunk.square().sum(-1))
    return torch.cat(labels, 1), torch.cat(distances, 1)


def _means(points: Tensor, labels: Tensor, count: int) -> Tensor:
    """Mean of the points of each cluster, none of which is empty, `[H, K, d]`."""
    sums = points.new_zeros(points.shape[0], count, points.shape[2])
    sums.scatter_add_(1, labels[..., None].expand_as(points), points)
    sizes = points.new_zeros(points.shape[0], count)
    sizes.scatter_add_(1, labels, torch.ones_like(labels, dtype=points.dtype))
    return sums / sizes[..., None]
