# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Selection without sorting: a search for the score above which enough weight lies.

Every pass adds up what lies above four scores at once and keeps the quarter of the interval that holds the
answer. Clusters within 2⁻¹² of the first interval, which is about 20 wide, of each other count as ties.
"""

import triton
import triton.language as tl

from tactic.kernels.estimators import Guarded, estimator_id
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index_map.reads import WORD, Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.triton import BLOCK, Scores
from tactic.kernels.sparse_decode.partials import Partials

_PASSES = 6
_RESIDENT = 8192  # clusters whose scores a program keeps in registers
_CHUNK = 4096  # clusters at once beyond that
_THREAD = 16  # clusters of a thread, at most


def select(reads: Reads, scores: Scores, partials: Partials, plan: StepPlan, *, sinks: int) -> None:
    """Marks the clusters that each query head selects, except for requests of `fit`.

    Args:
        reads: `masks` filled, `selected` added to.
        scores: of the layer.
        partials: those of sinks and tail.
        plan: of this step.
        sinks: positions that are always attended.
    """
    batch, query_heads, most = scores.keys.shape
    blocks = scores.spreads.shape[2]
    resident = most <= _RESIDENT
    clusters = triton.next_power_of_2(most) if resident else _CHUNK
    _select[(batch * query_heads,)](
        scores.keys,
        scores.sizes,
        scores.spreads,
        scores.variances,
        partials.lse,
        plan.clusters,
        plan.clustered,
        plan.threshold,
        plan.estimator,
        reads.masks,
        reads.selected,
        Guarded.margin,
        Guarded.slope,
        Guarded.least,
        sinks,
        query_heads,
        scores.sizes.shape[1],
        most,
        blocks,
        reads.masks.shape[2],
        BLOCK=BLOCK,
        BLOCKS=triton.next_power_of_2(blocks),
        CLUSTERS=max(WORD, clusters),
        RESIDENT=resident,
        PASSES=_PASSES,
        WORD=WORD,
        SPLITS=partials.splits,
        READERS=partials.readers,
        READERS_PADDED=triton.next_power_of_2(partials.readers),
        FIT=estimator_id("fit"),
        GUARDED=estimator_id("guarded"),
        num_warps=max(4, min(16, clusters // (32 * _THREAD))),
        **overlap(scores.keys.device),
    )


@triton.jit
def load_always(partial_lse, row, SPLITS: tl.constexpr, READERS: tl.constexpr, READERS_PADDED: tl.constexpr):
    """Log-weights of the parts of sinks and tail."""
    reader = tl.arange(0, READERS_PADDED)
    at = row.to(tl.int64) * (SPLITS + READERS) + SPLITS + reader
    return tl.load(partial_lse + at, mask=reader < READERS, other=-float("inf"))


@triton.jit
def mark(keys, sizes, masks, selected, count, cut, CLUSTERS: tl.constexpr, WORD: tl.constexpr):
    """Marks the clusters of a query head whose score is at least `cut`, and counts their tokens."""
    tokens = 0
    for first in range(0, count, CLUSTERS):
        key, size = _load(keys, sizes, first, count, CLUSTERS)
        tokens += _mark(masks, first, count, key >= cut, size, CLUSTERS, WORD)
    tl.store(selected, tl.load(selected) + tokens)


@triton.jit
def _mark(masks, first, count, taken, size, CLUSTERS: tl.constexpr, WORD: tl.constexpr):
    taken = (taken & (size > 0)).to(tl.int32)
    bits = tl.reshape(taken, (CLUSTERS // WORD, WORD)) << tl.arange(0, WORD)[None, :]
    word = first // WORD + tl.arange(0, CLUSTERS // WORD)
    tl.store(masks + word, tl.sum(bits, axis=1), mask=word * WORD < count)
    return tl.sum(taken * size)


@triton.jit
def _load(keys, sizes, first, count, CLUSTERS: tl.constexpr):
    cluster = first + tl.arange(0, CLUSTERS)
    inside = cluster < count
    key = tl.load(keys + cluster, mask=inside, other=-float("inf"))
    return key, tl.load(sizes + cluster, mask=inside, other=0)


@triton.jit
def _edges(key, value, low, step):
    """Values `[n, 2, 2]` of what scores at least low, low + step, low + 2 step, low + 3 step."""
    lower = tl.join(tl.where(key >= low, value, 0.0), tl.where(key >= low + step, value, 0.0))
    upper = tl.join(tl.where(key >= low + 2 * step, value, 0.0), tl.where(key >= low + 3 * step, value, 0.0))
    return tl.join(lower, upper)


@triton.jit
def _search(
    keys,
    sizes,
    key,
    value,
    count,
    reference,
    goal,
    low,
    high,
    BY_WEIGHT: tl.constexpr,
    CLUSTERS: tl.constexpr,
    RESIDENT: tl.constexpr,
    PASSES: tl.constexpr,
):
    """The highest score found in [low, high) above which values, weights or sizes, of at least `goal` lie."""
    way = tl.arange(0, 2)[:, None] + 2 * tl.arange(0, 2)[None, :]
    for _ in range(PASSES):
        step = (high - low) / 4
        if RESIDENT:
            above = _edges(key, value, low, step)
        else:
            above = tl.zeros((CLUSTERS, 2, 2), tl.float32)
            for first in range(0, count, CLUSTERS):
                own, size = _load(keys, sizes, first, count, CLUSTERS)
                amount = size * tl.exp(own - reference) if BY_WEIGHT else size.to(tl.float32)
                above += _edges(own, amount, low, step)
        enough = tl.where(tl.sum(above, axis=0) >= goal, way, 0)
        low += step * tl.max(tl.max(enough, axis=1), axis=0)
        high = low + step
    return low


@triton.jit
def _select(
    keys,
    sizes,
    spreads,
    variances,
    partial_lse,
    clusters,
    clustered,
    threshold,
    estimator,
    masks,
    selected,
    margin,
    slope,
    least_guarded,
    sinks,
    query_heads,
    heads,
    most,
    blocks,
    words,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    RESIDENT: tl.constexpr,
    PASSES: tl.constexpr,
    WORD: tl.constexpr,
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
    count = tl.load(clusters + request)
    kind = tl.load(estimator + request)
    wanted = tl.load(threshold + request)
    length = tl.load(clustered + request)
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)  # not before: the next kernel reads scores before it waits for this one
    if (count == 0) | (kind == FIT):
        return
    keys += row.to(tl.int64) * most
    sizes += pair.to(tl.int64) * most
    masks += row.to(tl.int64) * words
    parts = load_always(partial_lse, row, SPLITS, READERS, READERS_PADDED)
    block = tl.arange(0, BLOCKS)
    spread = tl.load(spreads + pair.to(tl.int64) * blocks + block, mask=block * BLOCK < count, other=0.0)
    key, size = _load(keys, sizes, 0, count, CLUSTERS)
    high = key
    if not RESIDENT:
        for first in range(CLUSTERS, count, CLUSTERS):
            high = tl.maximum(high, _load(keys, sizes, first, count, CLUSTERS)[0])
    high = tl.max(high)
    reference = tl.maximum(high, tl.max(parts))
    weight = size * tl.exp(key - reference)
    mass = weight
    if not RESIDENT:
        for first in range(CLUSTERS, count, CLUSTERS):
            other, other_size = _load(keys, sizes, first, count, CLUSTERS)
            mass += other_size * tl.exp(other - reference)

    variance = tl.load(variances + row) * tl.sum(spread) / tl.maximum(length - sinks, 1)
    odds = wanted / (1 - wanted) * tl.exp(margin + slope * variance)  # see `Guarded`
    aim = tl.where(kind == GUARDED, odds / (1 + odds), wanted)
    needed = aim * tl.sum(mass) - (1 - aim) * tl.sum(tl.exp(parts - reference))
    # All that lies farther below the highest score weighs less than what may be left out.
    low = high - tl.log(length / (1 - aim)) - 0.1
    high += 1e-3
    cut = _search(
        keys, sizes, key, weight, count, reference, needed, low, high, True, CLUSTERS, RESIDENT, PASSES
    )
    cut = tl.where(needed <= 0, float("inf"), cut)
    if kind == GUARDED:
        tokens = tl.where(key >= cut, size, 0)
        lowest = tl.where(key > -float("inf"), key, high)
        if not RESIDENT:
            for first in range(CLUSTERS, count, CLUSTERS):
                other, other_size = _load(keys, sizes, first, count, CLUSTERS)
                tokens += tl.where(other >= cut, other_size, 0)
                lowest = tl.minimum(lowest, tl.where(other > -float("inf"), other, high))
        if tl.sum(tokens) < least_guarded:
            low = tl.min(lowest) - 1e-3
            ranks = size.to(tl.float32)
            least = least_guarded * 1.0
            cut = _search(
                keys, sizes, key, ranks, count, reference, least, low, high, False, CLUSTERS, RESIDENT, PASSES
            )
    if RESIDENT:
        tokens_of_all = _mark(masks, 0, count, key >= cut, size, CLUSTERS, WORD)
        tl.store(selected + row, tl.load(selected + row) + tokens_of_all)
    else:
        mark(keys, sizes, masks, selected + row, count, cut, CLUSTERS, WORD)
