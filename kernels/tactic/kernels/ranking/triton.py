# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""First launch of a layer: scores of all clusters, and attention over sinks and tail, which are read anyway."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.estimators import estimator_id
from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.sparse_decode.partials import Partials, fold, load_group, store_part

BLOCK = 64  # clusters that a program scores at once
_TOKENS = 64
_STAGES = 5  # keys are behind indices: this keeps two tiles in flight


@dataclass(frozen=True)
class Scores:
    """What a layer knows of its clusters; entries beyond a request's clusters are undefined.

    Attributes:
        keys: `[B, Hq, K_max]` fp32; what clusters are ordered by, see `Ranking`.
        peaks: `[B, Hq, K_max / 64]` fp32; highest key of each 64 clusters.
        masses: `[B, Hq, K_max / 64]` fp32; their estimated weight, relative to that key.
        spreads: `[B, H, K_max / 64]` fp32; sum of their members' squared distances to the centroids.
        variances: `[B, Hq]` fp32; variance of the logits of keys whose squared distance to their centroid is 1.
        sizes: `[B, H, K_max]` int32; members, sinks left out.
        firsts: `[B, H, K_max]` int32; first of them, in its head's row of the arena's members.
    """

    keys: Tensor
    peaks: Tensor
    masses: Tensor
    spreads: Tensor
    variances: Tensor
    sizes: Tensor
    firsts: Tensor

    @classmethod
    def create(
        cls, *, batch: int, query_heads: int, kv_heads: int, clusters: int, device: torch.device | str
    ) -> "Scores":
        """Room for `batch` requests of at most `clusters` clusters."""
        blocks = triton.cdiv(clusters, BLOCK)

        def fp32(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=torch.float32, device=device)

        def int32(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=torch.int32, device=device)

        return cls(
            keys=fp32(query_heads, clusters),
            peaks=fp32(query_heads, blocks),
            masses=fp32(query_heads, blocks),
            spreads=fp32(kv_heads, blocks),
            variances=fp32(query_heads),
            sizes=int32(kv_heads, clusters),
            firsts=int32(kv_heads, clusters),
        )


def score(
    scores: Scores,
    partials: Partials,
    reads: Reads,
    plan: StepPlan,
    arena: LayerArena,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    *,
    scale: float,
    sinks: int,
    scorers: int,
) -> None:
    """Fills `scores` and the readers' parts of `partials`, and starts the counts of `reads`.

    Args:
        scores: filled.
        partials: filled at and above `partials.splits`.
        reads: `lengths` and `selected` become what is read anyway, `arrived` 0.
        plan: of this step.
        arena: this layer's index.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        scale: of the logits.
        sinks: positions that are always attended.
        scorers: programs that share a head's clusters.
    """
    batch, query_heads, dim = q.shape
    heads = k_pool.shape[1]
    most = scores.keys.shape[2]
    _score[(batch * heads, partials.readers + min(scorers, triton.cdiv(most, BLOCK)))](
        q,
        arena.centroids,
        arena.spread,
        arena.sizes,
        arena.starts,
        arena.members,
        k_pool,
        v_pool,
        req_to_token,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        plan.estimator,
        plan.rows,
        plan.bases,
        plan.begins,
        scores.keys,
        scores.peaks,
        scores.masses,
        scores.spreads,
        scores.variances,
        scores.sizes,
        scores.firsts,
        partials.out,
        partials.lse,
        reads.lengths,
        reads.selected,
        reads.arrived,
        scale,
        heads,
        dim,
        most,
        scores.peaks.shape[2],
        arena.spread.shape[1],
        arena.members.shape[1],
        req_to_token.stride(0),
        SINKS=sinks,
        GROUP=query_heads // heads,
        ROWS=max(16, triton.next_power_of_2(query_heads // heads)),
        D=max(16, triton.next_power_of_2(dim)),
        CLUSTERS=BLOCK,
        TOKENS=_TOKENS,
        SCORERS=min(scorers, triton.cdiv(most, BLOCK)),
        SPLITS=partials.splits,
        READERS=partials.readers,
        FIT=estimator_id("fit"),
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_stages=_STAGES,
        **overlap(q.device),
    )


@triton.jit
def _load_block(
    block,
    request,
    head,
    centroids,
    spread,
    arena_sizes,
    arena_starts,
    rows,
    bases,
    begins,
    dim,
    most,
    arena_clusters,
    CLUSTERS: tl.constexpr,
    D: tl.constexpr,
):
    """What a block's clusters are; beyond a request's last one that of some other cluster."""
    cluster = block * CLUSTERS + tl.arange(0, CLUSTERS)
    at = request * most + cluster
    inside = cluster < most
    row = head * arena_clusters + tl.load(rows + at, mask=inside, other=0)
    d = tl.arange(0, D)
    centroid = tl.load(centroids + row[:, None] * dim + d[None, :], mask=(d < dim)[None, :], other=0.0)
    first = tl.load(bases + at, mask=inside, other=0) + tl.load(arena_starts + row)
    begin = tl.load(begins + at, mask=inside, other=0)
    return centroid, tl.load(spread + row), tl.load(arena_sizes + row), first, begin


@triton.jit
def _score_block(
    block,
    count,
    pair,
    head,
    query,
    variance,
    by_centroid,
    scale,
    centroid,
    spread,
    size,
    first,
    begin,
    members,
    keys,
    peaks,
    masses,
    spreads,
    sizes,
    firsts,
    most,
    blocks,
    arena_members,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    cluster = block * CLUSTERS + tl.arange(0, CLUSTERS)
    inside = cluster < count
    size = tl.where(inside, size, 0)
    if tl.min(tl.where(inside, begin, SINKS)) < SINKS:  # sinks are the first members of their clusters
        leading = tl.zeros((CLUSTERS,), tl.int32)
        for i in range(SINKS):
            candidate = inside & (begin < SINKS) & (i < size)
            position = tl.load(members + head * arena_members + first + i, mask=candidate, other=0)
            leading += (candidate & (begin + position.to(tl.int32) < SINKS)).to(tl.int32)
        first += leading
        size -= leading
    at = pair.to(tl.int64) * most + cluster
    tl.store(sizes + at, size, mask=inside)
    tl.store(firsts + at, first, mask=inside)

    member = tl.arange(0, ROWS)
    filled = inside & (size > 0)
    logit = tl.dot(query, tl.trans(centroid), input_precision=PRECISION) * scale
    # `fit` orders by the centroid alone (arXiv 2502.12216, section 4.2).
    key = logit + tl.where(by_centroid, 0.0, variance[:, None] * spread[None, :] / 2)
    key = tl.where(filled[None, :], key, -float("inf"))
    row = (pair * GROUP + member).to(tl.int64)
    mine = member < GROUP
    tl.store(keys + row[:, None] * most + cluster[None, :], key, mask=mine[:, None] & inside[None, :])

    peak = tl.max(key, axis=1)
    weight = tl.where(filled[None, :], tl.exp(key - peak[:, None]) * size[None, :], 0.0)
    tl.store(peaks + row * blocks + block, peak, mask=mine)
    tl.store(masses + row * blocks + block, tl.sum(weight, axis=1), mask=mine)
    tl.store(spreads + pair * blocks + block, tl.sum(tl.where(filled, size * spread, 0.0)))


@triton.jit
def _score(
    q,
    centroids,
    spread,
    arena_sizes,
    arena_starts,
    members,
    k_pool,
    v_pool,
    req_to_token,
    slots,
    seq_lens,
    clusters,
    clustered,
    estimator,
    rows,
    bases,
    begins,
    keys,
    peaks,
    masses,
    spreads,
    variances,
    sizes,
    firsts,
    partial,
    partial_lse,
    lengths,
    selected,
    arrived,
    scale,
    heads,
    dim,
    most,
    blocks,
    arena_clusters,
    arena_members,
    context,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    CLUSTERS: tl.constexpr,
    TOKENS: tl.constexpr,
    SCORERS: tl.constexpr,
    SPLITS: tl.constexpr,
    READERS: tl.constexpr,
    FIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    pair = tl.program_id(0)
    part = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    count = tl.load(clusters + request)
    member = tl.arange(0, ROWS)
    if part < READERS:
        length = tl.load(clustered + request)
        fixed = tl.minimum(length, SINKS)
        always = fixed + tl.load(seq_lens + request) - length
        slot_row = req_to_token + tl.load(slots + request).to(tl.int64) * context
        wait_for_previous(OVERLAP)
        if part == 0:
            tl.store(lengths + pair, always)
            tl.store(arrived + pair, 0)
            own = tl.zeros((ROWS,), tl.int32) + always
            tl.store(selected + pair * GROUP + member, own, mask=member < GROUP)
        query = load_group(q, pair, dim, GROUP, ROWS, D)
        d = tl.arange(0, D)
        peak = tl.full((ROWS,), -float("inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        total = tl.zeros((ROWS, D), tl.float32)
        for begin in range(part * TOKENS, always, READERS * TOKENS):
            token = begin + tl.arange(0, TOKENS)
            inside = token < always
            position = tl.where(token < fixed, token, token - fixed + length)
            slot = tl.load(slot_row + position, mask=inside, other=0).to(tl.int64)
            at = (slot * heads + head)[:, None] * dim + d[None, :]
            valid = inside[:, None] & (d < dim)[None, :]
            key = tl.load(k_pool + at, mask=valid, other=0.0)
            value = tl.load(v_pool + at, mask=valid, other=0.0)
            peak, weight, total = fold(query, key, value, inside, scale, peak, weight, total, PRECISION)
        parts = SPLITS + READERS
        place = SPLITS + part
        store_part(partial, partial_lse, pair, place, parts, dim, peak, weight, total, GROUP, ROWS, D)
    elif (part - READERS) * CLUSTERS >= count:
        wait_for_previous(OVERLAP)
    else:
        block = part - READERS
        centroid, block_spread, size, first, begin = _load_block(
            block, request, head, centroids, spread, arena_sizes, arena_starts, rows, bases, begins,
            dim, most, arena_clusters, CLUSTERS, D,
        )  # fmt: skip
        wait_for_previous(OVERLAP)
        query = load_group(q, pair, dim, GROUP, ROWS, D)
        wide = query.to(tl.float32) * scale
        variance = tl.sum(wide * wide, axis=1) / dim
        if part == READERS:
            tl.store(variances + pair * GROUP + member, variance, mask=member < GROUP)
        by_centroid = tl.load(estimator + request) == FIT
        while block * CLUSTERS < count:
            _score_block(
                block, count, pair, head, query, variance, by_centroid, scale,
                centroid, block_spread, size, first, begin, members,
                keys, peaks, masses, spreads, sizes, firsts, most, blocks, arena_members,
                SINKS, GROUP, ROWS, CLUSTERS, PRECISION,
            )  # fmt: skip
            block += SCORERS
            if block * CLUSTERS < count:
                centroid, block_spread, size, first, begin = _load_block(
                    block, request, head, centroids, spread, arena_sizes, arena_starts, rows, bases, begins,
                    dim, most, arena_clusters, CLUSTERS, D,
                )  # fmt: skip
