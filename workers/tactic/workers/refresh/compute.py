"""The work of a clustering actor: k-means over the pieces of a refresh job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from tactic.kernels.index import Clusters
from tactic.kernels.kmeans import kmeans, kmeans_pool
from tactic.kernels.kmeans.naive import centroid_dtype
from tactic.workers.refresh.messages import Piece, RefreshJob
from tactic.workers.refresh.pools import MappedPools


def on(device: torch.device) -> AbstractContextManager[object]:
    """Makes a device the current one, as Triton's kernels need."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def cluster_in_place(job: RefreshJob, pools: MappedPools, rest: Callable[[], None]) -> None:
    """Clusters each piece in every layer and KV head, from the pool's keys into the index arenas.

    Kernels run where the pools were mapped. The keys of another GPU are gathered first, as they are read in
    each iteration; its multiprocessors have no part in it.

    Args:
        job: its slots say where the keys lie, its units where the clusters go.
        pools: of the rank that asks.
        rest: called when the work on a piece in a layer is queued.
    """
    slots = torch.frombuffer(bytearray(job.slots), dtype=torch.int32)
    for keys, arena in zip(pools.keys, pools.arenas, strict=True):
        for piece in job.pieces:
            at = slots[piece.offset : piece.offset + piece.length].to(keys.device, torch.int64)
            init = None
            if piece.warm_unit is not None:
                init = arena.read(piece.warm_unit, piece.length).centroids
            own = keys
            if pools.remote:
                own, at = keys[at], torch.arange(piece.length, device=keys.device)
            clusters = kmeans_pool(own, at[None], job.cluster_size, seed=job.seed, init=init)
            arena.write(piece.unit, clusters)
            rest()


def cluster_pieces(
    tensors: Sequence[torch.Tensor], pieces: Sequence[Piece], cluster_size: int, seed: int
) -> list[Clusters]:
    """Clusters each piece in every layer and KV head, of keys that were sent.

    Args:
        tensors: keys [L, H, n, d], then the old centroids [L * H, K, d] of each warm piece, in order.
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
        init = None if piece.warm_unit is None else next(starts)
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
        like: keys [B, n, d], or none of them [B, 0, d], B = L * H.

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
        check_partition(clusters, n, i)
        result.append(clusters)
    return result


def check_partition(clusters: Clusters, n: int, piece: int) -> None:
    """Refuses clusters that are no partition of n positions, or have numbers that are not finite.

    Raises:
        ValueError: naming the piece and what is wrong.
    """
    if not bool(clusters.centroids.isfinite().all() and clusters.spread.isfinite().all()):
        raise ValueError(f"piece {piece} has a centroid or spread that is not finite")
    sizes = clusters.sizes.long()
    ends = sizes.cumsum(-1)
    if bool((sizes < 1).any() or (ends[:, -1] != n).any() or (clusters.starts != ends - sizes).any()):
        raise ValueError(f"cluster sizes of piece {piece} do not cover its {n} positions")
    whole = torch.arange(n, dtype=torch.int16, device=clusters.members.device)
    if not bool((clusters.members.sort(dim=-1).values == whole).all()):
        raise ValueError(f"members of piece {piece} are not a permutation of its {n} positions")
