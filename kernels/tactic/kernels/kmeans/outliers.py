"""Gives the keys that lie farthest from their centroids a cluster each.

What a head looks for is often one key with a logit far above all others: a needle, the link of a chain. Such
a key lies far from the ordinary ones of its cluster, whose centroid does not tell of it, so that the cluster
ranks low and most of the attention weight is missed. Alone it is its own centroid. On the reference model's
retrieval head, all keys that were missed this way were among the 0.1 % farthest of their segment.
"""

import torch
from torch import Tensor

SHARE = 4
"""One cluster in so many holds an outlier: one key in 128 at 32 keys a cluster. With one in eight, a few
needles were still missed."""


def outliers_in(count: int) -> int:
    """How many of `count` clusters hold a single outlier: the last ones."""
    return count // SHARE


def isolate_outliers(labels: Tensor, distances: Tensor, count: int) -> None:
    """Moves the keys that lie farthest from their centroids to the last clusters, in place.

    Each of the last `outliers_in(count)` gets one, in order of position. Ties go to the lower position.
    Clusters may be left empty.

    Args:
        labels: `[B, n]` int64, cluster of each key, none of the last ones.
        distances: `[B, n]` fp32, squared distance of each key to its centroid; 0 afterwards for those moved.
        count: clusters, K ≤ n.
    """
    outliers = outliers_in(count)
    farthest = distances.sort(dim=-1, descending=True, stable=True).indices[:, :outliers].sort(-1).values
    labels.scatter_(
        1, farthest, torch.arange(count - outliers, count, device=labels.device).expand_as(farthest)
    )
    distances.scatter_(1, farthest, 0.0)
