"""The work of a clustering actor: k-means over the pieces of a refresh job."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from tactic.kernels.index import Clusters
from tactic.kernels.kmeans import kmeans, kmeans_pool
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
