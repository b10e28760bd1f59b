"""What a scheduler sees to before it takes a clustering actor's word that memory holds clusters."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tactic.kernels.index import Clusters
from tactic.kernels.kmeans.naive import centroid_dtype

FAULTS = (
    "has a centroid or spread that is not finite",
    "has cluster sizes that do not cover its positions",
    "has members that are not a permutation of its positions",
)
"""What `faults` looks for, in order."""


def unflatten(
    tensors: Sequence[torch.Tensor], lengths: Sequence[int], cluster_size: int, like: torch.Tensor
) -> list[Clusters]:
    """The clusters of each piece of a reply: right in shape and dtype, which is all that is known of them.

    Args:
        tensors: as `compute.flatten` gives them.
        lengths: positions of each piece.
        cluster_size: as asked for.
        like: keys [B, n, d], or none of them [B, 0, d], B = L * H.

    Raises:
        ValueError: the number of tensors, a shape or a dtype differs.
    """
    if len(tensors) != 5 * len(lengths):
        raise ValueError(f"{len(tensors)} tensors for {len(lengths)} pieces")
    problems, _, dim = like.shape
    result = []
    for i, n in enumerate(lengths):
        clusters = Clusters(*tensors[5 * i : 5 * i + 5])
        k = -(-n // cluster_size)
        expected = {
            "centroids": ((problems, k, dim), centroid_dtype(like.dtype)),
            "spread": ((problems, k), torch.float32),
            "members": ((problems, n), torch.int16),
            "starts": ((problems, k), torch.int32),
            "sizes": ((problems, k), torch.int32),
        }
        for name, (shape, dtype) in expected.items():
            tensor = getattr(clusters, name)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise ValueError(
                    f"{name} of piece {i} is {tensor.dtype} {tuple(tensor.shape)}, not {dtype} {shape}"
                )
        result.append(clusters)
    return result


def faults(clusters: Clusters) -> torch.Tensor:
    """Which of FAULTS clusters have, of which nothing is known but shapes: bool [3] on their device."""
    sizes = clusters.sizes.long()
    ends = sizes.cumsum(-1)
    n = clusters.members.shape[1]
    members = clusters.members.long()
    inside = members.clamp(0, n - 1)
    # n members that are n different ones: cheaper than to sort them, beside steps that need the GPU.
    met = torch.zeros_like(clusters.members, dtype=torch.bool).scatter_(1, inside, True)
    return torch.stack(
        [
            ~(clusters.centroids.isfinite().all() & clusters.spread.isfinite().all()),
            (sizes < 1).any() | (ends[:, -1] != n).any() | (clusters.starts != ends - sizes).any(),
            (members != inside).any() | ~met.all(),
        ]
    )


def describe(found: torch.Tensor) -> str:
    """The first fault of what `faults` says of each piece, [pieces, 3]; empty if there is none."""
    for piece, fault in found.nonzero().tolist():
        return f"piece {piece} {FAULTS[fault]}"
    return ""
