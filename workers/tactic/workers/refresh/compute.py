"""The work of a clustering actor: k-means over the pieces of a refresh job."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tactic.kernels.index import Clusters
from tactic.kernels.kmeans import kmeans
from tactic.workers.refresh.messages import Piece


def cluster_pieces(
    tensors: Sequence[torch.Tensor], pieces: Sequence[Piece], cluster_size: int, seed: int
) -> list[Clusters]:
    """Clusters each piece in every layer and KV head.

    Args:
        tensors: keys [L, H, n, d], then the old centroids [L, H, K, d] of each warm piece, in order.
        pieces: what becomes a segment.
        cluster_size: average members of a cluster.
        seed: of the initial centroids.

    Returns:
        For each piece its clusters, with L * H problems.
    """
    keys, *warm = tensors
    starts = iter(warm)
    result = []
    for piece in pieces:
        part = keys[:, :, piece.offset : piece.offset + piece.length].flatten(0, 1)
        init = next(starts).flatten(0, 1) if piece.warm else None
        result.append(kmeans(part, cluster_size, seed=seed, init=init))
    return result


def flatten(clusters: Sequence[Clusters]) -> list[torch.Tensor]:
    """The tensors of a reply, in order."""
    return [t for c in clusters for t in (c.centroids, c.spread, c.members, c.starts, c.sizes)]


def validated(
    tensors: Sequence[torch.Tensor], lengths: Sequence[int], cluster_size: int, like: torch.Tensor
) -> list[Clusters]:
    """Reads a reply, trusting nothing.

    Args:
        tensors: as `flatten` gives them.
        lengths: positions of each piece.
        cluster_size: as asked for.
        like: keys [B, n, d] or an empty tensor with their dtype and trailing dimension, B = L * H first.

    Raises:
        ValueError: shapes or dtypes differ, a number is not finite, or the members are not a partition.
    """
    if len(tensors) != 5 * len(lengths):
        raise ValueError(f"{len(tensors)} tensors for {len(lengths)} pieces")
    problems, _, dim = like.shape
    result = []
    for i, n in enumerate(lengths):
        clusters = Clusters(*tensors[5 * i : 5 * i + 5])
        k = -(-n // cluster_size)
        expected = {
            "centroids": ((problems, k, dim), like.dtype),
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
        _check_partition(clusters, n, i)
        result.append(clusters)
    return result


def _check_partition(clusters: Clusters, n: int, piece: int) -> None:
    if not bool(clusters.centroids.isfinite().all() and clusters.spread.isfinite().all()):
        raise ValueError(f"piece {piece} has a centroid or spread that is not finite")
    sizes = clusters.sizes.long()
    ends = sizes.cumsum(-1)
    if bool((sizes < 1).any() or (ends[:, -1] != n).any() or (clusters.starts != ends - sizes).any()):
        raise ValueError(f"cluster sizes of piece {piece} do not cover its {n} positions")
    whole = torch.arange(n, dtype=torch.int16, device=clusters.members.device)
    if not bool((clusters.members.sort(dim=-1).values == whole).all()):
        raise ValueError(f"members of piece {piece} are not a permutation of its {n} positions")
