# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""K-means in Triton: keys read in place from the KV pool, no atomics on floats, no host sync.

A problem is one KV head of one segment. Both halves of an iteration are matrix products: the assignment
multiplies keys with centroids that stay on chip, the update multiplies one-hot labels with keys, so that sums
are fp32 and in fixed order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.clusters import Clusters
from tactic.kernels.index.units import clusters_in
from tactic.kernels.kmeans.outliers import outliers_in

_DTYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
# CLUSTERS: the most in a block, see `_tiles`; REST: the least size of a block's second tile, 0 for none.
_ASSIGN = {"TOKENS": 64, "CLUSTERS": 256, "REST": 16, "num_warps": 4, "num_stages": 5}
_SUM = {"TOKENS": 64, "CLUSTERS": 192, "REST": 64, "num_warps": 8, "num_stages": 5}
_WIDE = {"TOKENS": 64, "CLUSTERS": 64, "REST": 0, "num_warps": 4, "num_stages": 2}  # fp32: twice the size
_REFILL = {"num_warps": 16}
_MEASURE = {"TOKENS": 32, "num_warps": 1}
_PLACE = {"TOKENS": 64, "num_warps": 1}  # TOKENS: positions that one program puts in order
_SCANNED = 32  # clusters of a program
_CENTROID_BYTES = 1 << 16  # that a program of the assignment holds on chip
_CHUNK = 1024  # positions that are summed up without a break
_UNSPLIT = 128  # programs from which on one walks over all chunks
_PROGRAMS = 256  # of the assignment, where there are tokens enough: two on each multiprocessor


def kmeans_pool_triton(
    k_pool: Tensor,
    slot_ids: Tensor,
    cluster_size: int,
    *,
    max_iters: int = 5,
    init: Tensor,
) -> Clusters:
    """Clusters S segments of n keys for all KV heads; B = S * H problems, segment-major.

    Runs all `max_iters` iterations: a test of convergence would make the host wait.

    Args:
        k_pool: `[slots, H, d]`, keys, any float dtype.
        slot_ids: `[S, n]` int, pool slot of each position.
        cluster_size: average members of a cluster.
        max_iters: iterations, ≥ 1.
        init: `[S * H, K - outliers, d]`, initial centroids; keys are multiplied, and centroids stored, in
            their dtype.
    """
    segments, n = slot_ids.shape
    _, heads, dim = k_pool.shape
    problems, count = segments * heads, clusters_in(n, cluster_size)
    device = k_pool.device
    # Distances are to centroids as they are stored; the sums behind them are fp32.
    own = torch.empty_like(init, memory_format=torch.contiguous_format)
    centroids = torch.empty(problems, count, dim, dtype=init.dtype, device=device)
    labels = torch.empty(problems, n, dtype=torch.int32, device=device)
    squares, scores = torch.empty(2, problems, n, dtype=torch.float32, device=device)
    sizes = torch.empty(problems, count, dtype=torch.int32, device=device)
    strides = (dim, k_pool.stride(0), k_pool.stride(1))
    block_d = max(16, triton.next_power_of_2(dim))
    assign = _tiles(_ASSIGN, own.shape[1], block_d, init.dtype)
    parts = min(triton.cdiv(n, assign["TOKENS"]), triton.next_power_of_2(triton.cdiv(_PROGRAMS, problems)))
    chunks = triton.cdiv(n, _CHUNK)

    for iteration in range(max_iters):
        # The last clusters get their outliers in the end.
        last = iteration == max_iters - 1
        filled, into = (count, centroids) if last else (own.shape[1], own)
        _assign[(problems, parts)](
            k_pool,
            slot_ids,
            own if iteration else init.contiguous(),
            labels,
            scores,
            squares,
            heads,
            n,
            own.shape[1],
            *strides,
            SQUARES=iteration == 0,
            D=block_d,
            **assign,
        )
        _refill[(problems,)](
            labels,
            squares,
            scores,
            sizes,
            n,
            filled,
            OUTLIERS=outliers_in(count) if last else 0,
            N=triton.next_power_of_2(n),
            K=triton.next_power_of_2(filled),
            **_REFILL,
        )
        add = _tiles(_SUM, filled, block_d, init.dtype)
        blocks = triton.cdiv(filled, add["CLUSTERS"] + add["REST"])
        # All or nothing: either way chunks are added in order, so that other problems do not change the sums.
        split = chunks if problems * blocks < _UNSPLIT else 1
        sums = into
        if split > 1:
            sums = torch.empty(problems, split, filled, dim, dtype=torch.float32, device=device)
        _sum[(problems, blocks, split)](
            k_pool,
            slot_ids,
            labels,
            sizes,
            sums,
            heads,
            n,
            filled,
            *strides,
            chunks // split,
            MEAN=split == 1,
            DTYPE=_DTYPES[init.dtype],
            CHUNK=_CHUNK,
            D=block_d,
            **add,
        )
        if split > 1:
            _mean[(problems, filled)](sums, sizes, into, filled, dim, split, D=block_d, num_warps=1)

    starts, members = _sort(labels, sizes)
    spread = torch.empty(problems, count, dtype=torch.float32, device=device)
    _measure[(problems, count)](
        k_pool,
        slot_ids,
        centroids,
        members,
        starts,
        sizes,
        spread,
        heads,
        n,
        count,
        *strides,
        D=block_d,
        **_MEASURE,
    )
    return Clusters(centroids, spread, members, starts, sizes)


def _tiles(options: dict[str, int], count: int, block_d: int, dtype: torch.dtype) -> dict[str, int]:
    """Launch options of a kernel, its blocks of clusters no larger than useful or than fits.

    A block is one tile, a power of two, or two that are a half and a quarter of one: a quarter of the
    clusters wait for outliers, so that three quarters are the usual count.
    """
    if dtype.itemsize > 2:
        options = _WIDE
    most = max(16, min(options["CLUSTERS"], _CENTROID_BYTES // (block_d * dtype.itemsize)))
    share = triton.cdiv(count, triton.cdiv(count, most))
    whole = max(16, triton.next_power_of_2(share))
    rest = whole // 4
    if share > whole - rest or not 0 < options["REST"] <= rest:
        return {**options, "CLUSTERS": whole, "REST": 0}
    return {**options, "CLUSTERS": whole // 2, "REST": rest}


def _sort(labels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """First place of each cluster `[B, K]` int32, and the positions in order of cluster `[B, n]` int16."""
    problems, n = labels.shape
    count = sizes.shape[1]
    tokens, blocks = _PLACE["TOKENS"], triton.cdiv(count, _SCANNED)
    chunks = triton.cdiv(n, tokens)
    counts, places = torch.empty(2, problems, chunks, count, dtype=torch.int32, device=labels.device)
    starts = torch.empty_like(sizes)
    members = torch.empty(problems, n, dtype=torch.int16, device=labels.device)
    whole = triton.next_power_of_2(count)
    _tally[(problems, chunks)](labels, counts, n, count, TOKENS=tokens, K=whole)
    constants = {"CHUNKS": triton.next_power_of_2(chunks), "CLUSTERS": _SCANNED, "K": whole}
    _scan[(problems, blocks)](counts, sizes, starts, places, chunks, count, **constants)
    _place[(problems, chunks)](labels, places, members, n, count, **_PLACE)
    return starts, members


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
    inside,
    D: tl.constexpr,
):
    """Keys [.., D] of the problem's positions `tokens`, zero where not `inside`."""
    segment = problem // heads
    head = problem % heads
    slots = tl.load(slot_ids + segment.to(tl.int64) * n + tokens, mask=inside, other=0).to(tl.int64)
    d = tl.arange(0, D)
    rows = pool + slots * slot_stride + head * head_stride
    return tl.load(rows[:, None] + d[None, :], mask=inside[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def _load_centroids(centroids, problem, cluster, count, dim, D: tl.constexpr):
    """Centroids [.., D] of the problem's clusters `cluster`, and -|c|²/2 of each, -inf from `count` on."""
    d = tl.arange(0, D)
    rows = centroids + (problem.to(tl.int64) * count + cluster) * dim
    used = (cluster < count)[:, None] & (d < dim)[None, :]
    centroid = tl.load(rows[:, None] + d[None, :], mask=used, other=0.0)
    wide = centroid.to(tl.float32)
    return centroid, tl.where(cluster < count, -0.5 * tl.sum(wide * wide, axis=1), -float("inf"))


@triton.jit
def _nearest(keys, centroid, offset, cluster, count):
    """Largest score of each key, and the first cluster that has it."""
    start = tl.broadcast_to(offset[None, :], (keys.shape[0], cluster.shape[0]))
    score = tl.dot(keys, tl.trans(centroid), acc=start, input_precision="ieee")
    best = tl.max(score, axis=1)
    return best, tl.min(tl.where(score == best[:, None], cluster[None, :], count), axis=1)


@triton.jit
def _assign(
    pool,
    slot_ids,
    centroids,
    labels,
    scores,
    squares,
    heads,
    n,
    count,
    dim,
    slot_stride,
    head_stride,
    TOKENS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    REST: tl.constexpr,
    SQUARES: tl.constexpr,
    D: tl.constexpr,
):
    """Nearest centroid of each key, which has the largest score k·c - |c|²/2, for a part of the tokens.

    A block of clusters is a tile of CLUSTERS and one of REST. Also stores |k|², if SQUARES.
    """
    problem = tl.program_id(0)
    share = tl.cdiv(tl.cdiv(n, TOKENS), tl.num_programs(1)) * TOKENS
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, n)
    for first in range(0, count, CLUSTERS + REST):
        cluster = first + tl.arange(0, CLUSTERS)
        centroid, offset = _load_centroids(centroids, problem, cluster, count, dim, D)
        if REST > 0:
            more = first + CLUSTERS + tl.arange(0, REST)
            more_centroid, more_offset = _load_centroids(centroids, problem, more, count, dim, D)
        for start in range(begin, end, TOKENS):
            tokens = start + tl.arange(0, TOKENS)
            inside = tokens < end
            at = problem.to(tl.int64) * n + tokens
            keys = _load_keys(
                pool, slot_ids, problem, heads, n, dim, slot_stride, head_stride, tokens, inside, D
            )
            if SQUARES:
                wide = keys.to(tl.float32)
                tl.store(squares + at, tl.sum(wide * wide, axis=1), mask=inside)
            keys = keys.to(centroid.dtype)
            best, label = _nearest(keys, centroid, offset, cluster, count)
            if REST > 0:
                more_best, more_label = _nearest(keys, more_centroid, more_offset, more, count)
                label = tl.where(more_best > best, more_label, label)
                best = tl.maximum(best, more_best)
            earlier = tl.load(scores + at, mask=inside & (first > 0), other=-float("inf"))
            tl.store(labels + at, label, mask=inside & (best > earlier))
            tl.store(scores + at, tl.maximum(best, earlier), mask=inside)
        tl.debug_barrier()  # the next block of clusters reads these scores


@triton.jit
def _refill(
    labels,
    squares,
    scores,
    sizes,
    n,
    count,
    OUTLIERS: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
):
    """Does `isolate_outliers`, if any are wanted, and `refill_empty` in a problem, and counts the members."""
    problem = tl.program_id(0).to(tl.int64)
    labels += problem * n
    sizes += problem * count
    every = tl.arange(0, N)
    cluster = tl.arange(0, K)
    label = tl.load(labels + every, mask=every < n, other=0)
    square = tl.load(squares + problem * n + every, mask=every < n, other=0.0)
    score = tl.load(scores + problem * n + every, mask=every < n, other=0.0)
    distance = tl.where(every < n, tl.maximum(square - 2 * score, 0.0), -1.0)
    if OUTLIERS > 0:
        farthest = _largest(distance, OUTLIERS)
        place = tl.cumsum(farthest.to(tl.int32), axis=0) - 1
        label = tl.where(farthest, count - OUTLIERS + place, label)
        distance = tl.where(farthest, 0.0, distance)
        tl.store(labels + every, label, mask=every < n)
    size = tl.histogram(label, K, mask=every < n)
    tl.store(sizes + cluster, size, mask=cluster < count)
    empty = (cluster < count) & (size == 0)
    if tl.sum(empty.to(tl.int32)) > 0:
        tl.debug_barrier()  # the sizes are written
        for target in range(0, count):
            if tl.load(sizes + target) == 0:
                movable = (tl.load(sizes + label) > 1) & (every < n)
                chosen = tl.argmax(tl.where(movable, distance, -float("inf")), axis=0, tie_break_left=True)
                taken = every == chosen
                donor = tl.sum(tl.where(taken, label, 0))
                tl.debug_barrier()  # all threads have read the sizes
                tl.store(sizes + donor, tl.load(sizes + donor) - 1)
                tl.store(sizes + target, 1)
                tl.debug_barrier()  # the next step reads what this one wrote
                label = tl.where(taken, target, label)
                distance = tl.where(taken, 0.0, distance)
        tl.store(labels + every, label, mask=every < n)


@triton.jit
def _largest(values, COUNT: tl.constexpr):
    """Which of `values` [N] fp32 are the COUNT largest, of equal ones the first; negative ones are none."""
    # Floats from 0 on are in the order of their bits. The smallest that is chosen is found bit by bit.
    bits = values.to(tl.int32, bitcast=True)
    least = tl.zeros((), tl.int32)
    for i in tl.static_range(31):
        higher = least | (1 << (30 - i))
        least = tl.where(tl.sum((bits >= higher).to(tl.int32)) >= COUNT, higher, least)
    above = bits > least
    equal = bits == least
    room = COUNT - tl.sum(above.to(tl.int32))
    return above | (equal & (tl.cumsum(equal.to(tl.int32), axis=0) <= room))


@triton.jit
def _sum(
    pool,
    slot_ids,
    labels,
    sizes,
    out,
    heads,
    n,
    count,
    dim,
    slot_stride,
    head_stride,
    chunks,
    MEAN: tl.constexpr,
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
    TOKENS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    REST: tl.constexpr,
    D: tl.constexpr,
):
    """Sums of the members of a block of clusters, over `chunks` chunks of positions one after the other.

    A block is a tile of CLUSTERS and one of REST. If MEAN, these are all chunks, and `out` is the centroids.
    """
    problem = tl.program_id(0).to(tl.int64)
    part = tl.program_id(2)
    begin = tl.program_id(1) * (CLUSTERS + REST)
    cluster = begin + tl.arange(0, CLUSTERS)
    total = tl.zeros((CLUSTERS, D), tl.float32)
    if REST > 0:
        more = begin + CLUSTERS + tl.arange(0, REST)
        more_total = tl.zeros((REST, D), tl.float32)
    for chunk in range(part * chunks, part * chunks + chunks):
        partial = tl.zeros((CLUSTERS, D), tl.float32)
        if REST > 0:
            more_partial = tl.zeros((REST, D), tl.float32)
        for first in range(chunk * CHUNK, tl.minimum(chunk * CHUNK + CHUNK, n), TOKENS):
            tokens = first + tl.arange(0, TOKENS)
            inside = tokens < n
            keys = _load_keys(
                pool, slot_ids, problem, heads, n, dim, slot_stride, head_stride, tokens, inside, D
            ).to(DTYPE)
            label = tl.load(labels + problem * n + tokens, mask=inside, other=-1)
            member = (cluster[:, None] == label[None, :]).to(DTYPE)
            partial = tl.dot(member, keys, acc=partial, input_precision="ieee")
            if REST > 0:
                member = (more[:, None] == label[None, :]).to(DTYPE)
                more_partial = tl.dot(member, keys, acc=more_partial, input_precision="ieee")
        total += partial
        if REST > 0:
            more_total += more_partial
    row = (problem * tl.num_programs(2) + part) * count
    _store_sums(out, row, total, sizes + problem * count, cluster, count, dim, MEAN, D)
    if REST > 0:
        _store_sums(out, row, more_total, sizes + problem * count, more, count, dim, MEAN, D)


@triton.jit
def _store_sums(out, row, total, sizes, cluster, count, dim, MEAN: tl.constexpr, D: tl.constexpr):
    """Writes the sums of the clusters `cluster`, or their means, to `out` from row `row` on."""
    if MEAN:
        total /= tl.load(sizes + cluster, mask=cluster < count, other=1).to(tl.float32)[:, None]
    d = tl.arange(0, D)
    at = out + (row + cluster)[:, None] * dim + d[None, :]
    tl.store(at, total.to(out.dtype.element_ty), mask=(cluster < count)[:, None] & (d < dim)[None, :])


@triton.jit
def _mean(sums, sizes, centroids, count, dim, split, D: tl.constexpr):
    """Centroid of one cluster from its sums."""
    problem = tl.program_id(0).to(tl.int64)
    cluster = tl.program_id(1)
    d = tl.arange(0, D)
    total = tl.zeros((D,), tl.float32)
    for part in range(0, split):
        row = sums + ((problem * split + part) * count + cluster) * dim
        total += tl.load(row + d, mask=d < dim, other=0.0)
    at = problem * count + cluster
    mean = total / tl.load(sizes + at).to(tl.float32)
    tl.store(centroids + at * dim + d, mean.to(centroids.dtype.element_ty), mask=d < dim)


@triton.jit
def _tally(labels, counts, n, count, TOKENS: tl.constexpr, K: tl.constexpr):
    """Members of each cluster in one chunk of positions."""
    problem = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * TOKENS + tl.arange(0, TOKENS)
    label = tl.load(labels + problem * n + tokens, mask=tokens < n, other=0)
    cluster = tl.arange(0, K)
    row = counts + (problem * tl.num_programs(1) + chunk) * count
    tl.store(row + cluster, tl.histogram(label, K, mask=tokens < n), mask=cluster < count)


@triton.jit
def _scan(
    counts,
    sizes,
    starts,
    places,
    chunks,
    count,
    CHUNKS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    K: tl.constexpr,
):
    """First place of each of a block of clusters, and the first in each chunk of positions."""
    problem = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * CLUSTERS
    sizes += problem * count
    every = tl.arange(0, K)
    before = tl.sum(tl.load(sizes + every, mask=every < begin, other=0))
    cluster = begin + tl.arange(0, CLUSTERS)
    size = tl.load(sizes + cluster, mask=cluster < count, other=0)
    start = before + tl.cumsum(size, axis=0) - size
    tl.store(starts + problem * count + cluster, start, mask=cluster < count)
    chunk = tl.arange(0, CHUNKS)
    at = (problem * chunks + chunk)[:, None] * count + cluster[None, :]
    used = (chunk < chunks)[:, None] & (cluster < count)[None, :]
    members = tl.load(counts + at, mask=used, other=0)
    tl.store(places + at, start[None, :] + tl.cumsum(members, axis=0) - members, mask=used)


@triton.jit
def _place(labels, places, members, n, count, TOKENS: tl.constexpr):
    """Writes the positions of one chunk in order of cluster; its first of each goes to `places`."""
    problem = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    tokens = chunk * TOKENS + tl.arange(0, TOKENS)
    label = tl.load(labels + problem * n + tokens, mask=tokens < n, other=0)
    before = (label[None, :] == label[:, None]) & (tokens[None, :] < tokens[:, None])
    first = tl.load(places + (problem * tl.num_programs(1) + chunk) * count + label)
    place = first + tl.sum(before.to(tl.int32), axis=1)
    tl.store(members + problem * n + place, tokens.to(tl.int16), mask=tokens < n)


@triton.jit
def _measure(
    pool,
    slot_ids,
    centroids,
    members,
    starts,
    sizes,
    spread,
    heads,
    n,
    count,
    dim,
    slot_stride,
    head_stride,
    TOKENS: tl.constexpr,
    D: tl.constexpr,
):
    """Mean squared distance of a cluster's members to its centroid, without the cancellation of `_assign`."""
    problem = tl.program_id(0)
    at = problem.to(tl.int64) * count + tl.program_id(1)
    d = tl.arange(0, D)
    centroid = tl.load(centroids + at * dim + d, mask=d < dim, other=0.0).to(tl.float32)
    start = problem.to(tl.int64) * n + tl.load(starts + at)
    size = tl.load(sizes + at)
    total = tl.zeros((TOKENS,), tl.float32)
    for first in range(0, size, TOKENS):
        i = first + tl.arange(0, TOKENS)
        inside = i < size
        tokens = tl.load(members + start + i, mask=inside, other=0).to(tl.int32)
        keys = _load_keys(pool, slot_ids, problem, heads, n, dim, slot_stride, head_stride, tokens, inside, D)
        difference = tl.where(inside[:, None], keys.to(tl.float32) - centroid[None, :], 0.0)
        total += tl.sum(difference * difference, axis=1)
    tl.store(spread + at, tl.sum(total) / size.to(tl.float32))
