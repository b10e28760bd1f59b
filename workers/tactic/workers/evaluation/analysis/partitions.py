"""Other ways to divide a context into clusters, to compare ours with."""

import torch
from torch import Tensor

from tactic.kernels.index import clusters_in
from tactic.kernels.kmeans.refill import refill_empty
from tactic.workers.evaluation.analysis.index import Partition

_WORKSPACE_ELEMENTS = 1 << 26  # distances held at once, 256 MiB of fp32


def from_labels(keys: Tensor, labels: Tensor, count: int) -> Partition:
    """The partition with given labels `[H, length]` int64 of `keys` `[n, H, d]`; no cluster may be empty."""
    points = keys[: labels.shape[1]].transpose(0, 1).float()
    return Partition(labels, _means(points, labels, count))


def positional(keys: Tensor, length: int, cluster_size: int) -> Partition:
    """Blocks of `cluster_size` consecutive positions."""
    labels = torch.arange(length, device=keys.device) // cluster_size
    return from_labels(keys, labels.expand(keys.shape[1], -1), clusters_in(length, cluster_size))


def global_kmeans(
    keys: Tensor, length: int, cluster_size: int, *, max_iters: int = 10, seed: int = 0
) -> Partition:
    """Lloyd's algorithm over the whole context at once, as the paper does it: O(n²), no segments."""
    points = keys[:length].transpose(0, 1).float()
    count = clusters_in(length, cluster_size)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(length, generator=generator)[:count].sort().values
    centroids = points[:, chosen.to(keys.device)]
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
    found = []
    for chunk in points.split(max(1, _WORKSPACE_ELEMENTS // norms.numel()), dim=1):
        nearest = torch.baddbmm(norms, chunk, centroids.mT, alpha=-2).min(-1)
        found.append((nearest.indices, nearest.values + chunk.square().sum(-1)))
    labels, distances = zip(*found, strict=True)
    return torch.cat(labels, 1), torch.cat(distances, 1)


def _means(points: Tensor, labels: Tensor, count: int) -> Tensor:
    sums = points.new_zeros(points.shape[0], count, points.shape[2])
    sums.scatter_add_(1, labels[..., None].expand_as(points), points)
    sizes = points.new_zeros(points.shape[0], count)
    sizes.scatter_add_(1, labels, torch.ones_like(labels, dtype=points.dtype))
    return sums / sizes[..., None]
