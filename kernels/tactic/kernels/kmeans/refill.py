"""Keeps every cluster non-empty."""

import torch
from torch import Tensor


def refill_empty(labels: Tensor, distances: Tensor, count: int) -> None:
    """Fills the empty clusters, in order, each with the key that lies farthest from its centroid, in place.

    The only key of a cluster is never taken. Ties go to the lower position.

    Args:
        labels: `[B, n]` int64, cluster of each key; n ≥ `count`.
        distances: `[B, n]` fp32, squared distance of each key to its centroid; 0 afterwards for those moved.
        count: clusters, K.
    """
    sizes = torch.zeros(labels.shape[0], count, dtype=torch.int64, device=labels.device)
    sizes.scatter_add_(1, labels, torch.ones_like(labels))
    for problem, cluster in (sizes == 0).nonzero().tolist():
        label, distance, size = labels[problem], distances[problem], sizes[problem]
        farthest = int(distance.where(size[label] > 1, -torch.inf).argmax())
        size[label[farthest]] -= 1
        size[cluster] = 1
        label[farthest] = cluster
        distance[farthest] = 0
