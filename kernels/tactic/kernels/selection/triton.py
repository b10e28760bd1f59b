# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Selection without sorting: a search for the score above which enough weight lies.

Every pass adds up what lies above four scores at once and keeps the quarter of the interval that holds the
answer. Clusters within 2⁻¹² of the first interval, which is about 20 wide, of each other count as ties.
"""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.estimators import Guarded, estimator_id
from tactic.kernels.index.step import StepPlan
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.triton import BLOCK, Scores
from tactic.kernels.sparse_decode.partials import Partials

_PASSES = 6
_WAYS = 4
_SIZES = ((1 << 13, 2048, 8), (1 << 62, 4096, 16))  # up to how many clusters: clusters at once, warps


def find_cuts(cuts: Tensor, scores: Scores, partials: Partials, plan: StepPlan, *, sinks: int) -> None:
    """The lowest score that each query head selects.

    Args:
        cuts: `[B, Hq]` fp32, filled but for requests of `fit`; inf where nothing need be selected.
        scores: of the layer.
        partials: those of sinks and tail.
        plan: of this step.
        sinks: positions that are always attended.
    """
    batch, query_heads, most = scores.keys.shape
    blocks = scores.spreads.shape[2]
    clusters, warps = next((size, warps) for bound, size, warps in _SIZES if most <= bound)
    _cut[(batch * query_heads,)](
        scores.keys,
        scores.sizes,
        scores.spreads,
        scores.variances,
        partials.lse,
        plan.clusters,
        plan.clustered,
        plan.threshold,
        plan.estimator,
        cuts,
        Guarded.margin,
        Guarded.slope,
        Guarded.least,
        sinks,
        query_heads,
        scores.sizes.shape[1],
        most,
        blocks,
        BLOCK=BLOCK,
        BLOCKS=triton.next_power_of_2(blocks),
        CLUSTERS=min(clusters, triton.next_power_of_2(most)),
        PASSES=_PASSES,
        WAYS=_WAYS,
        SPLITS=partials.splits,
        READERS=partials.readers,
        READERS_PADDED=triton.next_power_of_2(partials.readers),
        FIT=estimator_id("fit"),
        GUARDED=estimator_id("guarded"),
        num_warps=warps,
        **overlap(scores.keys.device),
    )


@triton.jit
def load_always(partial_lse, row, SPLITS: tl.constexpr, READERS: tl.constexpr, READERS_PADDED: tl.constexpr):
    """Log-weights of the parts of sinks and tail."""
    reader = tl.arange(0, READERS_PADDED)
    at = row.to(tl.int64) * (SPLITS + READERS) + SPLITS + reader
    return tl.load(partial_lse + at, mask=reader < READERS, other=-float("inf"))


@triton.jit
def _cut(
    keys,
    sizes,
    spreads,
    variances,
    partial_lse,
    clusters,
    clustered,
    threshold,
    estimator,
    cuts,
    margin,
    slope,
    least_guarded,
    sinks,
    query_heads,
    heads,
    most,
    blocks,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PASSES: tl.constexpr,
    WAYS: tl.constexpr,
    SPLITS: tl.constexpr,
    READERS: tl.constexpr,
    READERS_PADDED: tl.constexpr,
    FIT: tl.constexpr,
    GUARDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    row = tl.program_id(0)
    request = row // query_heads
    pair = row // (query_heads // heads)
    count = tl.load(clusters + request)
    kind = tl.load(estimator + request)
    wanted = tl.load(threshold + request)
    length = tl.load(clustered + request)
    wait_for_previous(OVERLAP)
    if (count == 0) | (kind == FIT):
        return
    keys += row.to(tl.int64) * most
    sizes += pair.to(tl.int64) * most
    parts = load_always(partial_lse, row, SPLITS, READERS, READERS_PADDED)
    block = tl.arange(0, BLOCKS)
    spread = tl.load(spreads + pair.to(tl.int64) * blocks + block, mask=block * BLOCK < count, other=0.0)
    variance = tl.load(variances + row) * tl.sum(spread) / tl.maximum(length - sinks, 1)
    odds = wanted / (1 - wanted) * tl.exp(margin + slope * variance)  # see `Guarded`
    aim = tl.where(kind == GUARDED, odds / (1 + odds), wanted)
    least = tl.where(kind == GUARDED, least_guarded, 0)

    highest = tl.full((CLUSTERS,), -float("inf"), tl.float32)
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        highest = tl.maximum(highest, tl.load(keys + cluster, mask=cluster < count, other=-float("inf")))
    high = tl.max(highest)
    reference = tl.maximum(high, tl.max(parts))
    mass = tl.zeros((CLUSTERS,), tl.float32)
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        key = tl.load(keys + cluster, mask=cluster < count, other=-float("inf"))
        size = tl.load(sizes + cluster, mask=cluster < count, other=0)
        mass += size * tl.exp(key - reference)
    needed = aim * tl.sum(mass) - (1 - aim) * tl.sum(tl.exp(parts - reference))

    # All that lies farther below the highest score weighs less than what may be left out.
    low = high - tl.log(length / (1 - aim)) - 0.1
    high += 1e-3
    way = tl.arange(0, WAYS)
    for _ in range(PASSES):
        step = (high - low) / WAYS
        edge = (low + step * way)[:, None]
        weight_above = tl.zeros((WAYS, CLUSTERS), tl.float32)
        tokens_above = tl.zeros((WAYS, CLUSTERS), tl.int32)
        for first in range(0, count, CLUSTERS):
            cluster = first + tl.arange(0, CLUSTERS)
            key = tl.load(keys + cluster, mask=cluster < count, other=-float("inf"))
            size = tl.load(sizes + cluster, mask=cluster < count, other=0)
            weight = size * tl.exp(key - reference)
            taken = key[None, :] >= edge
            weight_above += tl.where(taken, weight[None, :], 0.0)
            tokens_above += tl.where(taken, size[None, :], 0)
        enough = (tl.sum(weight_above, axis=1) >= needed) & (tl.sum(tokens_above, axis=1) >= least)
        low += step * tl.max(tl.where(enough, way, 0))
        high = low + step
    tl.store(cuts + row, tl.where((needed <= 0) & (least == 0), float("inf"), low))
