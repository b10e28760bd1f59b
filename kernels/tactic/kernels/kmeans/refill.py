"""Keeps every cluster non-empty."""

import torch
from torch import Tensor


def refill_empty(labels: Tensor, distances: Tensor, count: int) -> None:
    """Moves the keys farthest from their centroids into the empty clusters, in place.

    The nearest key of each cluster stays, so that no cluster is emptied to fill another. Ties go to the lower
    position, empty clusters are filled in order.

    Args:
        labels: `[B, n]` int64, cluster of each key; n ≥ `count`.
        distances: `[B, n]` fp32, squared distance of each key to its centroid.
        count: clusters, K.
    """
    occupied = torch.zeros(labels.shape[0], count, dtype=torch.bool, device=labels.device)
    occupied.scatter_(1, labels, True)
    for problem in (~occupied.all(-1)).nonzero().flatten().tolist():
        label, distance = labels[problem], distances[problem]
        empty = (~occupied[problem]).nonzero().flatten()
        nearest_first = distance.argsort(stable=True)
        by_cluster = nearest_first[label[nearest_first].argsort(stable=True)]
        grouped = label[by_cluster]
        stays = torch.ones_like(grouped, dtype=torch.bool)
        stays[1:] = grouped[1:] != grouped[:-1]
        movable = distance.index_fill(0, by_cluster[stays], -torch.inf)
        farthest = movable.argsort(descending=True, stable=True)[: empty.shape[0]]
        label[farthest] = empty
