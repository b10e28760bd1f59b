# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Selection without sorting: how many of the lowest levels of scores can be left out.

The tokens of each level have been counted, so that one running sum over the levels tells; a level's weight is
that of its middle. A query head's work is the same for any number of clusters.
"""

import triton
import triton.language as tl

from tactic.kernels.estimators import Guarded, estimator_id
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index.triton import load_extent
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.levels import LEVELS
from tactic.kernels.ranking.levels_triton import middle_of
from tactic.kernels.ranking.triton import Scores
from tactic.kernels.sparse_decode.partials import Partials

_WARPS = 8
_LOG2_E = tl.constexpr(1.4426950408889634)
_MOST = tl.constexpr(115.0)  # in base 2, so that sums of weights stay finite


def select(reads: Reads, scores: Scores, partials: Partials, plan: StepPlan, *, sinks: int) -> None:
    """Cuts each query head's levels, except for requests of `fit`.

    Args:
        reads: `cuts` and `selected` filled.
        scores: of the layer.
        partials: those of sinks and tail.
        plan: of this step.
        sinks: positions that are always attended.
    """
    batch, query_heads = reads.cuts.shape
    blocks = scores.spreads.shape[2]
    _select[(batch * query_heads,)](
        scores.tally,
        scores.references,
        scores.spreads,
        scores.variances,
        partials.lse,
        plan.blocks,
        plan.clustered,
        plan.seq_lens,
        plan.threshold,
        plan.estimator,
        reads.cuts,
        reads.selected,
        Guarded.margin,
        Guarded.slope,
        Guarded.most,
        Guarded.least,
        query_heads,
        scores.spreads.shape[1],
        blocks,
        SINKS=sinks,
        COPIES=scores.tally.shape[2],
        LEVELS=LEVELS,
        BLOCKS=triton.next_power_of_2(blocks),
        SPLITS=partials.splits,
        READERS=partials.readers,
        READERS_PADDED=triton.next_power_of_2(partials.readers),
        FIT=estimator_id("fit"),
        GUARDED=estimator_id("guarded"),
        num_warps=_WARPS,
        **overlap(scores.tally.device),
    )


@triton.jit
def load_always(partial_lse, row, SPLITS: tl.constexpr, READERS: tl.constexpr, READERS_PADDED: tl.constexpr):
    """Log-weights of the parts of sinks and tail."""
    reader = tl.arange(0, READERS_PADDED)
    at = row.to(tl.int64) * (SPLITS + READERS) + SPLITS + reader
    return tl.load(partial_lse + at, mask=reader < READERS, other=-float("inf"))


@triton.jit
def _select(
    tally,
    references,
    spreads,
    variances,
    partial_lse,
    request_blocks,
    clustered,
    seq_lens,
    threshold,
    estimator,
    cuts,
    selected,
    margin,
    slope,
    most,
    least,
    query_heads,
    heads,
    blocks,
    SINKS: tl.constexpr,
    COPIES: tl.constexpr,
    LEVELS: tl.constexpr,
    BLOCKS: tl.constexpr,
    SPLITS: tl.constexpr,
    READERS: tl.constexpr,
    READERS_PADDED: tl.constexpr,
    FIT: tl.constexpr,
    GUARDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0)
    request = row // query_heads
    pair = row // (query_heads // heads)
    count = tl.load(request_blocks + request)
    kind = tl.load(estimator + request)
    wanted = tl.load(threshold + request)
    length, _, always = load_extent(clustered, seq_lens, request, SINKS)
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)  # not before: the next kernel reads scores before it waits for this one
    if (count == 0) | (kind == FIT):
        return
    level = tl.arange(0, LEVELS)
    tally += row.to(tl.int64) * (COPIES * LEVELS)
    tokens = tl.load(tally + level)
    for copy in tl.static_range(1, COPIES):
        tokens += tl.load(tally + copy * LEVELS + level)
    parts = load_always(partial_lse, row, SPLITS, READERS, READERS_PADDED) - tl.load(references + row)
    block = tl.arange(0, BLOCKS)
    spread = tl.load(spreads + pair.to(tl.int64) * blocks + block, mask=block < count, other=0.0)
    top = middle_of(tl.max(tl.where(tokens > 0, level, 0)))
    weight = tokens * tl.exp2(tl.minimum(middle_of(level) - top, 0.0) * _LOG2_E)  # none above the top
    total = tl.sum(weight) + tl.sum(tl.exp2(tl.minimum((parts - top) * _LOG2_E, _MOST)))

    variance = tl.load(variances + row) * tl.sum(spread) / tl.maximum(length - SINKS, 1)
    headroom = tl.where(kind == GUARDED, tl.minimum(margin + slope * variance, most), 0.0)  # see `Guarded`
    spared = total / (1 + wanted / (1 - wanted) * tl.exp(headroom))
    surplus = tl.sum(tokens) - tl.where(kind == GUARDED, least, 0)
    left_out = (tl.cumsum(weight) <= spared) & (tl.cumsum(tokens) <= surplus) & (level < LEVELS - 1)
    tl.store(cuts + row, tl.sum(left_out.to(tl.int32)))
    tl.store(selected + row, always + tl.sum(tl.where(left_out, 0, tokens)))
