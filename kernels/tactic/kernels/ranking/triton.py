# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Scores of all clusters, in levels, and how many tokens each level has."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.estimators import estimator_id
from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import BLOCK, StepPlan
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.levels import LEVELS
from tactic.kernels.ranking.levels_triton import level_of
from tactic.kernels.sparse_decode.partials import precision

_WARPS = 1  # a stream of blocks of its own, without barriers
_REGISTERS = 128  # so that 16 programs run at once on a multiprocessor
_LEAST_MEMBERS = 8  # columns of the smallest matrix product
_CROWDED = 8192  # clusters from which counting in one place is slowed by their number
_COPIES = 4
_LINE = tl.constexpr(128)  # bytes of a cache line


@dataclass(frozen=True)
class Scores:
    """What a layer knows of its clusters; entries beyond a request's clusters are undefined.

    Attributes:
        levels: `[B, H, K_max, Hq / H]` int16; what clusters are ordered by, see `levels_of`.
        tally: `[B, Hq, copies, LEVELS]` int32; members of the clusters of each level, once added up. Zero
            between two layers: scores add to it, and who reads it last clears it.
        references: `[B, Hq]` fp32; score from which levels count.
        keys: `[B, Hq, K_max]` fp32; the scores themselves, for `fit`, else `[B, Hq, 0]`.
        spreads: `[B, H, N_max]` fp32; squared distances to centroids, summed over a block's members.
        variances: `[B, Hq]` fp32; variance of the logits for a mean squared distance of 1.
        sizes: `[B, H, K_max]` int32; members, sinks left out.
        firsts: `[B, H, K_max]` int32; first of them, in its head's row of the arena's members.
    """

    levels: Tensor
    tally: Tensor
    references: Tensor
    keys: Tensor
    spreads: Tensor
    variances: Tensor
    sizes: Tensor
    firsts: Tensor

    @classmethod
    def create(
        cls,
        *,
        batch: int,
        query_heads: int,
        kv_heads: int,
        clusters: int,
        blocks: int,
        keys: bool,
        device: torch.device | str,
    ) -> "Scores":
        """Room for `batch` requests of at most so many clusters and blocks; `keys`: for `fit`, too."""

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=dtype, device=device)

        return cls(
            levels=zeros(torch.int16, kv_heads, clusters, query_heads // kv_heads),
            tally=zeros(torch.int32, query_heads, 1 if clusters < _CROWDED else _COPIES, LEVELS),
            references=zeros(torch.float32, query_heads),
            keys=zeros(torch.float32, query_heads, clusters if keys else 0),
            spreads=zeros(torch.float32, kv_heads, blocks),
            variances=zeros(torch.float32, query_heads),
            sizes=zeros(torch.int32, kv_heads, clusters),
            firsts=zeros(torch.int32, kv_heads, clusters),
        )


def score(
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    q: Tensor,
    *,
    scale: float,
    sinks: int,
    scorers: int,
) -> None:
    """Fills `scores`; runs beside `attend_always`, which must have been launched just before.

    Args:
        scores: filled; `tally` added to.
        plan: of this step.
        arena: this layer's index.
        q: `[B, Hq, d]`, contiguous.
        scale: of the logits.
        sinks: positions that are always attended.
        scorers: programs that share a head's clusters.
    """
    batch, _, dim = q.shape
    heads, arena_clusters = arena.spread.shape
    most, blocks = scores.sizes.shape[2], scores.spreads.shape[2]
    scorers = min(scorers, blocks)
    _score[(batch * heads, scorers)](
        q,
        arena.codes,
        arena.factors,
        arena.spread,
        arena.sizes,
        arena.starts,
        arena.members,
        plan.estimator,
        plan.blocks,
        plan.block_rows,
        plan.block_firsts,
        plan.block_sizes,
        plan.block_bases,
        plan.block_begins,
        scores.levels,
        scores.tally,
        scores.references,
        scores.keys,
        scores.spreads,
        scores.variances,
        scores.sizes,
        scores.firsts,
        scale,
        heads,
        dim,
        most,
        blocks,
        arena_clusters,
        arena.members.shape[1],
        SINKS=sinks,
        CLUSTERS=BLOCK,
        WHOLE=arena.clusters_per_unit % BLOCK == 0,
        SCORERS=scorers,
        KEYS=scores.keys.shape[2] > 0,
        COPIES=scores.tally.shape[2],
        LEVELS=LEVELS,
        FIT=estimator_id("fit"),
        GROUP=q.shape[1] // heads,
        MEMBERS=max(_LEAST_MEMBERS, triton.next_power_of_2(q.shape[1] // heads)),
        D=max(16, triton.next_power_of_2(dim)),
        PRECISION=precision(q),
        num_warps=_WARPS,
        maxnreg=_REGISTERS,
        **overlap(q.device),
    )


@triton.jit
def _prefetch(pointer):
    """Fetches the lines of these addresses into L2."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointer], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def _prefetch_block(
    block, head, codes, factors, spread, arena_sizes, arena_starts, rows, dim, arena_clusters,
    CLUSTERS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """What `_load_block` will load: in registers it would leave too few programs at once."""
    origin = head * arena_clusters + tl.load(rows + block)
    line = tl.arange(0, CLUSTERS * D // _LINE) * _LINE
    _prefetch(codes + origin * dim + tl.minimum(line, CLUSTERS * dim - 1))
    _prefetch(factors + origin)
    _prefetch(spread + origin)
    _prefetch(arena_sizes + origin)
    _prefetch(arena_starts + origin)


@triton.jit
def _load_block(
    block,
    head,
    codes,
    factors,
    spread,
    arena_sizes,
    arena_starts,
    rows,
    bases,
    dim,
    arena_clusters,
    CLUSTERS: tl.constexpr,
    WHOLE: tl.constexpr,
    D: tl.constexpr,
):
    """What a block's clusters are; beyond its last one that of some other cluster."""
    origin = head * arena_clusters + tl.load(rows + block)
    own = tl.arange(0, CLUSTERS)
    if not WHOLE:
        own = tl.minimum(own, (head + 1) * arena_clusters - 1 - origin).to(tl.int32)
    d = tl.arange(0, D)
    at = codes + origin * dim + (own[:, None] * dim + d[None, :])
    code = tl.load(at, mask=(d < dim)[None, :], other=0)
    factor = tl.load(factors + origin + own)
    first = tl.load(bases + block) + tl.load(arena_starts + origin + own)
    return code, factor, tl.load(spread + origin + own), tl.load(arena_sizes + origin + own), first


@triton.jit
def _score_block(
    block,
    pair,
    head,
    query,
    variance,
    reference,
    by_centroid,
    scale,
    code,
    factor,
    spread,
    size,
    first,
    block_firsts,
    block_sizes,
    block_begins,
    members,
    levels,
    tally,
    keys,
    spreads,
    sizes,
    firsts,
    most,
    blocks,
    arena_members,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    KEYS: tl.constexpr,
    COPIES: tl.constexpr,
    LEVELS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    own = tl.arange(0, CLUSTERS)
    inside = own < tl.load(block_sizes + block)
    size = tl.where(inside, size, 0)
    begin = tl.load(block_begins + block)
    if begin < SINKS:  # sinks are the first members of their clusters
        leading = tl.zeros((CLUSTERS,), tl.int32)
        for i in range(SINKS):
            candidate = inside & (i < size)
            position = tl.load(members + head * arena_members + first + i, mask=candidate, other=0)
            leading += (candidate & (begin + position.to(tl.int32) < SINKS)).to(tl.int32)
        first += leading
        size -= leading
    at = pair.to(tl.int64) * most + tl.load(block_firsts + block) + own
    tl.store(sizes + at, size, mask=inside)
    tl.store(firsts + at, first, mask=inside)

    filled = inside & (size > 0)
    logit = tl.dot(code.to(query.dtype), query, input_precision=PRECISION) * (factor * scale)[:, None]
    # `fit` orders by the centroid alone (arXiv 2502.12216, section 4.2).
    key = logit + tl.where(by_centroid, 0.0, spread[:, None] * (variance / 2)[None, :])
    level = level_of(tl.where(filled[:, None], key - reference[None, :], 0.0))
    member = tl.arange(0, MEMBERS)
    mine = (member < GROUP)[None, :]
    tl.store(levels + at[:, None] * GROUP + member[None, :], level.to(tl.int16), mask=mine & inside[:, None])
    row = (pair * GROUP + member).to(tl.int64)[None, :]
    amount = tl.zeros_like(level) + size[:, None]
    count = tally + (row * COPIES + block % COPIES) * LEVELS + level
    tl.atomic_add(count, amount, mask=mine & filled[:, None], sem="relaxed")
    if KEYS:
        key = tl.where(filled[:, None], key, -float("inf"))
        cluster = tl.load(block_firsts + block) + own
        tl.store(keys + row * most + cluster[:, None], key, mask=mine & inside[:, None])

    tl.store(spreads + pair * blocks + block, tl.sum(tl.where(filled, size * spread, 0.0)))


@triton.jit
def _score(
    q,
    codes,
    factors,
    spread,
    arena_sizes,
    arena_starts,
    members,
    estimator,
    request_blocks,
    block_rows,
    block_firsts,
    block_sizes,
    block_bases,
    block_begins,
    levels,
    tally,
    references,
    keys,
    spreads,
    variances,
    sizes,
    firsts,
    scale,
    heads,
    dim: tl.constexpr,
    most,
    blocks,
    arena_clusters,
    arena_members,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    MEMBERS: tl.constexpr,
    D: tl.constexpr,
    CLUSTERS: tl.constexpr,
    WHOLE: tl.constexpr,
    SCORERS: tl.constexpr,
    KEYS: tl.constexpr,
    COPIES: tl.constexpr,
    LEVELS: tl.constexpr,
    FIT: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    pair = tl.program_id(0)
    block = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    count = tl.load(request_blocks + request)
    block_rows += request * blocks
    block_firsts += request * blocks
    block_sizes += request * blocks
    block_bases += request * blocks
    block_begins += request * blocks
    if block < count:
        if OVERLAP:
            _prefetch_block(
                block, head, codes, factors, spread, arena_sizes, arena_starts, block_rows, dim,
                arena_clusters, CLUSTERS, D,
            )  # fmt: skip
        d = tl.arange(0, D)
        origin = head * arena_clusters + tl.load(block_rows)
        first_code = tl.load(codes + origin * dim + d, mask=d < dim, other=0).to(tl.float32)
        member = tl.arange(0, MEMBERS)
        mine = member < GROUP
        at_query = (pair * GROUP + member)[:, None] * dim + d[None, :]
        query = tl.load(q + at_query, mask=mine[:, None] & (d < dim)[None, :], other=0.0)
        wide = query.to(tl.float32) * scale
        variance = tl.sum(wide * wide, axis=1) / dim
        reference = tl.sum(wide * first_code[None, :], axis=1) * tl.load(factors + origin)
        if block == 0:
            tl.store(variances + pair * GROUP + member, variance, mask=mine)
            tl.store(references + pair * GROUP + member, reference, mask=mine)
        query = tl.trans(query)
        by_centroid = tl.load(estimator + request) == FIT
        while block < count:
            code, factor, block_spread, size, first = _load_block(
                block, head, codes, factors, spread, arena_sizes, arena_starts, block_rows, block_bases,
                dim, arena_clusters, CLUSTERS, WHOLE, D,
            )  # fmt: skip
            if OVERLAP:  # the next block comes while this one is scored
                _prefetch_block(
                    tl.minimum(block + SCORERS, count - 1), head, codes, factors, spread, arena_sizes,
                    arena_starts, block_rows, dim, arena_clusters, CLUSTERS, D,
                )  # fmt: skip
            _score_block(
                block, pair, head, query, variance, reference, by_centroid, scale, code,
                factor, block_spread, size, first, block_firsts, block_sizes, block_begins, members,
                levels, tally, keys, spreads, sizes, firsts, most, blocks, arena_members,
                SINKS, GROUP, MEMBERS, CLUSTERS, KEYS, COPIES, LEVELS, PRECISION,
            )  # fmt: skip
            block += SCORERS
    wait_for_previous(OVERLAP)  # so that whatever waits for this kernel waits for the one before it, too
