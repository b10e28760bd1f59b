# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""K-means in Triton: keys read in place from the KV pool, no atomics, no host sync.

A problem is one KV head of one segment. Distances and means are matrix products: the assignment multiplies
keys with centroids, the update multiplies one-hot labels with keys, so that sums are fp32 and in fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.clusters import Clusters
from tactic.kernels.index.units import clusters_in

_TOKENS = 64
_CLUSTERS = 64


def kmeans_pool_triton(
    k_pool: Tensor,
    slot_ids: Tensor,
    cluster_size: int,
    *,
    max_iters: int = 10,
    init: Tensor,
) -> Clusters:
    """Clusters S segments of n keys for all KV heads; B = S * H problems, segment-major.

    Runs all `max_iters` iterations: a test of convergence would make the host wait.

    Args:
        k_pool: `[slots, H, d]`, keys.
        slot_ids: `[S, n]` int, pool slot of each position.
        cluster_size: average members of a cluster.
        max_iters: iterations, ≥ 1.
        init: `[S * H, K, d]`, initial centroids.
    """
    segments, n = slot_ids.shape
    _, heads, dim = k_pool.shape
    problems, count = segments * heads, clusters_in(n, cluster_size)
    device = k_pool.device
    # Distances are to centroids in the keys' dtype, as they are stored; the sums behind them are fp32.
    centroids = init.to(k_pool.dtype, memory_format=torch.contiguous_format, copy=True)
    labels = torch.empty(problems, n, dtype=torch.int32, device=device)
    distances = torch.empty(problems, n, dtype=torch.float32, device=device)
    sizes = torch.empty(problems, count, dtype=torch.int32, device=device)
    shape = (heads, n, count, dim, k_pool.stride(0), k_pool.stride(1))
    block_d = max(16, triton.next_power_of_2(dim))
    precision = "ieee" if k_pool.dtype == torch.float32 else "tf32"
    tiles = {"TOKENS": _TOKENS, "CLUSTERS": _CLUSTERS, "D": block_d}
    by_token = (problems, triton.cdiv(n, _TOKENS))
    by_cluster = (problems, triton.cdiv(count, _CLUSTERS))
    all_tokens, all_clusters = triton.next_power_of_2(n), triton.next_power_of_2(count)

    for _ in range(max_iters):
        _assign[by_token](
            k_pool, slot_ids, centroids, labels, distances, *shape, PRECISION=precision, **tiles
        )
        _count[by_cluster](labels, sizes, n, count, TOKENS=_TOKENS, CLUSTERS=_CLUSTERS)
        _refill[(problems,)](labels, distances, sizes, n, count, N=all_tokens, K=all_clusters, num_warps=8)
        _update[by_cluster](k_pool, slot_ids, labels, sizes, centroids, *shape, PRECISION=precision, **tiles)

    members = torch.empty(problems, n, dtype=torch.int16, device=device)
    starts = torch.empty_like(sizes)
    spread = torch.empty(problems, count, dtype=torch.float32, device=device)
    _measure[by_token](k_pool, slot_ids, centroids, labels, distances, *shape, TOKENS=_TOKENS, D=block_d)
    _group[by_cluster](
        labels,
        distances,
        sizes,
        members,
        starts,
        spread,
        n,
        count,
        TOKENS=_TOKENS,
        CLUSTERS=_CLUSTERS,
        K=all_clusters,
    )
    return Clusters(centroids, spread, members, starts, sizes)


@triton.jit
def _load_keys(
    pool,
    slot_ids,
    problem,
    heads,
    n,
    dim,
    slot_stride,
    head_stride,
    tokens,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
):
    """Keys [TOKENS, D] of the problem's positions `tokens`, zero outside."""
    segment = problem // heads
    head = problem % heads
    inside = tokens < n
    slots = tl.load(slot_ids + segment.to(tl.int64) * n + tokens, mask=inside, other=0).to(tl.int64)
    d = tl.arange(0, D)
    rows = pool + slots * slot_stride + head * head_stride
    return tl.load(rows[:, None] + d[None, :], mask=inside[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def _assign(
    pool,
    slot_ids,
    centroids,
    labels,
    distances,
    heads,
    n,
    count,
    dim,
    slot_stride,
    head_stride,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    D: tl.constexpr,
):
    problem = tl.program_id(0)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    keys = _load_keys(pool, slot_ids, problem, heads, n, dim, slot_stride, head_stride, tokens, TOKENS, D)
    d = tl.arange(0, D)
    best = tl.full((TOKENS,), float("inf"), tl.float32)
    best_label = tl.zeros((TOKENS,), tl.int32)
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        rows = centroids + (problem.to(tl.int64) * count + cluster) * dim
        inside = (cluster < count)[:, None] & (d < dim)[None, :]
        centroid = tl.load(rows[:, None] + d[None, :], mask=inside, other=0.0)
        wide = centroid.to(tl.float32)
        norm = tl.sum(wide * wide, axis=1)
        product = tl.dot(keys, tl.trans(centroid), input_precision=PRECISION)
        partial = tl.where((cluster < count)[None, :], norm[None, :] - 2 * product, float("inf"))
        nearest = tl.min(partial, axis=1)
        index = tl.argmin(partial, axis=1, tie_break_left=True)
        closer = nearest < best
        best = tl.where(closer, nearest, best)
        best_label = tl.where(closer, first + index, best_label)
    wide_keys = keys.to(tl.float32)
    best += tl.sum(wide_keys * wide_keys, axis=1)
    at = problem.to(tl.int64) * n + tokens
    tl.store(labels + at, best_label, mask=tokens < n)
    tl.store(distances + at, best, mask=tokens < n)


@triton.jit
def _count(labels, sizes, n, count, TOKENS: tl.constexpr, CLUSTERS: tl.constexpr):
    problem = tl.program_id(0)
    cluster = tl.program_id(1) * CLUSTERS + tl.arange(0, CLUSTERS)
    total = tl.zeros((CLUSTERS,), tl.int32)
    for first in range(0, n, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        label = tl.load(labels + problem.to(tl.int64) * n + tokens, mask=tokens < n, other=-1)
        total += tl.sum((cluster[:, None] == label[None, :]).to(tl.int32), axis=1)
    tl.store(sizes + problem.to(tl.int64) * count + cluster, total, mask=cluster < count)


@triton.jit
def _refill(labels, distances, sizes, n, count, N: tl.constexpr, K: tl.constexpr):
    """`refill_empty` for one problem; most have nothing to do."""
    problem = tl.program_id(0).to(tl.int64)
    labels += problem * n
    distances += problem * n
    sizes += problem * count
    cluster = tl.arange(0, K)
    empty = tl.load(sizes + cluster, mask=cluster < count, other=1) == 0
    if tl.sum(empty.to(tl.int32)) > 0:
        tokens = tl.arange(0, N)
        label = tl.load(labels + tokens, mask=tokens < n, other=0)
        distance = tl.load(distances + tokens, mask=tokens < n, other=0.0)
        for target in range(0, count):
            if tl.load(sizes + target) == 0:
                size = tl.load(sizes + label)
                movable = (size > 1) & (tokens < n)
                farthest = tl.argmax(tl.where(movable, distance, -float("inf")), axis=0, tie_break_left=True)
                taken = tokens == farthest
                donor = tl.sum(tl.where(taken, label, 0))
                tl.debug_barrier()  # all threads have read the sizes
                tl.store(sizes + donor, tl.load(sizes + donor) - 1)
                tl.store(sizes + target, 1)
                tl.debug_barrier()  # the next step reads what this one wrote
                label = tl.where(taken, target, label)
                distance = tl.where(taken, 0.0, distance)
        tl.store(labels + tokens, label, mask=tokens < n)


@triton.jit
def _update(
    pool,
    slot_ids,
    labels,
    sizes,
    centroids,
    heads,
    n,
    count,
    dim,
    slot_stride,
    head_stride,
    PRECISION: tl.constexpr,
    TOKENS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    D: tl.constexpr,
):
    problem = tl.program_id(0)
    cluster = tl.program_id(1) * CLUSTERS + tl.arange(0, CLUSTERS)
    total = tl.zeros((CLUSTERS, D), tl.float32)
    for first in range(0, n, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        keys = _load_keys(pool, slot_ids, problem, heads, n, dim, slot_stride, head_stride, tokens, TOKENS, D)
        label = tl.load(labels + problem.to(tl.int64) * n + tokens, mask=tokens < n, other=-1)
        member = (cluster[:, None] == label[None, :]).to(tl.float32).to(keys.dtype)
        total += tl.dot(member, keys, input_precision=PRECISION)
    at = problem.to(tl.int64) * count + cluster
    size = tl.load(sizes + at, mask=cluster < count, other=1)
    d = tl.arange(0, D)
    mean = total / size.to(tl.float32)[:, None]
    inside = (cluster < count)[:, None] & (d < dim)[None, :]
    tl.store(centroids + at[:, None] * dim + d[None, :], mean.to(centroids.dtype.element_ty), mask=inside)


@triton.jit
def _measure(
    pool,
    slot_ids,
    centroids,
    labels,
    distances,
    heads,
    n,
    count,
    dim,
    slot_stride,
    head_stride,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
):
    """Squared distance of each key to its own centroid, without the cancellation of `_assign`."""
    problem = tl.program_id(0)
    tokens = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    keys = _load_keys(pool, slot_ids, problem, heads, n, dim, slot_stride, head_stride, tokens, TOKENS, D)
    at = problem.to(tl.int64) * n + tokens
    label = tl.load(labels + at, mask=tokens < n, other=0)
    d = tl.arange(0, D)
    rows = centroids + (problem.to(tl.int64) * count + label) * dim
    inside = (tokens < n)[:, None] & (d < dim)[None, :]
    own = tl.load(rows[:, None] + d[None, :], mask=inside, other=0.0)
    difference = keys.to(tl.float32) - own.to(tl.float32)
    tl.store(distances + at, tl.sum(difference * difference, axis=1), mask=tokens < n)


@triton.jit
def _group(
    labels,
    distances,
    sizes,
    members,
    starts,
    spread,
    n,
    count,
    TOKENS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    K: tl.constexpr,
):
    """Positions in order of cluster (a counting sort), and the mean squared distance in each."""
    problem = tl.program_id(0).to(tl.int64)
    cluster = tl.program_id(1) * CLUSTERS + tl.arange(0, CLUSTERS)
    inside = cluster < count
    every = tl.arange(0, K)
    every_size = tl.load(sizes + problem * count + every, mask=every < count, other=0)
    before = every[None, :] < cluster[:, None]
    start = tl.sum(tl.where(before, every_size[None, :], 0), axis=1)
    seen = tl.zeros((CLUSTERS,), tl.int32)
    total = tl.zeros((CLUSTERS,), tl.float32)
    for first in range(0, n, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        label = tl.load(labels + problem * n + tokens, mask=tokens < n, other=-1)
        distance = tl.load(distances + problem * n + tokens, mask=tokens < n, other=0.0)
        member = cluster[:, None] == label[None, :]
        place = seen[:, None] + tl.cumsum(member.to(tl.int32), axis=1) - 1
        at = problem * n + start[:, None] + place
        position = tl.broadcast_to(tokens[None, :], (CLUSTERS, TOKENS)).to(tl.int16)
        tl.store(members + at, position, mask=member & inside[:, None])
        seen += tl.sum(member.to(tl.int32), axis=1)
        total += tl.sum(tl.where(member, distance[None, :], 0.0), axis=1)
    at = problem * count + cluster
    tl.store(starts + at, start, mask=inside)
    tl.store(spread + at, total / tl.maximum(seen, 1).to(tl.float32), mask=inside)
