"""Segment k-means: groups the keys of a segment by Euclidean distance (arXiv 2502.12216, section 4.1)."""

import torch
from torch import Tensor

from tactic.kernels.index.clusters import Clusters
from tactic.kernels.kmeans.naive import centroid_dtype, check_arguments, initial_positions
from tactic.kernels.kmeans.naive import kmeans as kmeans_naive
from tactic.kernels.kmeans.outliers import outliers_in
from tactic.kernels.upload import upload

__all__ = ["kmeans", "kmeans_pool"]


def kmeans_pool(
    k_pool: Tensor,
    slot_ids: Tensor,
    cluster_size: int,
    *,
    max_iters: int = 5,
    seed: int = 0,
    init: Tensor | None = None,
) -> Clusters:
    """Clusters S segments of n keys, read in place from the KV pool, for all H KV heads.

    Args:
        k_pool: `[slots, H, d]`, keys, any float dtype.
        slot_ids: `[S, n]` integer, pool slot of each position; 1 ≤ n ≤ 8192.
        cluster_size: average members of a cluster.
        max_iters: iterations at most, ≥ 1.
        seed: of the initial choice.
        init: `[S * H, K, d]` centroids to start from, less those of outliers; random keys if None.

    Returns:
        The clusters of B = S * H problems, segment-major. See `naive.kmeans` for the definition.

    Raises:
        ValueError: n, max_iters or the shape of `init` is out of range.
    """
    segments, n = slot_ids.shape
    _, heads, dim = k_pool.shape
    if not k_pool.is_cuda:
        keys = _gather(k_pool, slot_ids)
        return kmeans_naive(keys, cluster_size, max_iters=max_iters, seed=seed, init=init)
    from tactic.kernels.kmeans.triton import kmeans_pool_triton

    count = check_arguments(segments * heads, n, dim, cluster_size, max_iters, init)
    ordinary = count - outliers_in(count)
    if init is None:
        chosen = upload(initial_positions(n, ordinary, seed), k_pool.device)
        init = _gather(k_pool, slot_ids[:, chosen])
    init = init[:, :ordinary].to(centroid_dtype(k_pool.dtype))
    return kmeans_pool_triton(k_pool, slot_ids, cluster_size, max_iters=max_iters, init=init)


def _gather(k_pool: Tensor, slot_ids: Tensor) -> Tensor:
    """Keys at slots `[S, m]`, as `[S * H, m, d]`."""
    segments, m = slot_ids.shape
    _, heads, dim = k_pool.shape
    return k_pool[slot_ids.long()].transpose(1, 2).reshape(segments * heads, m, dim)


def kmeans(
    keys: Tensor,
    cluster_size: int,
    *,
    max_iters: int = 5,
    seed: int = 0,
    init: Tensor | None = None,
) -> Clusters:
    """Clusters the keys `[B, n, d]` of B problems; otherwise as `kmeans_pool` with H = 1."""
    if not keys.is_cuda:
        return kmeans_naive(keys, cluster_size, max_iters=max_iters, seed=seed, init=init)
    problems, n, dim = keys.shape
    pool = keys.reshape(problems * n, 1, dim)
    slot_ids = torch.arange(problems * n, device=keys.device).view(problems, n)
    return kmeans_pool(pool, slot_ids, cluster_size, max_iters=max_iters, seed=seed, init=init)
