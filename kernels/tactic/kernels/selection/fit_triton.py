# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Selection by the curve of `fit`: a search for the score above which enough weight lies, by its samples.

Every pass adds up what lies above eight scores at once and keeps the part of the interval that holds the
answer.
"""

import triton
import triton.language as tl

from tactic.kernels.estimators import estimator_id
from tactic.kernels.estimators.triton import MARKS, Samples, in_marks, score_range
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.ranking.levels import LEVELS
from tactic.kernels.ranking.levels_triton import level_of
from tactic.kernels.ranking.triton import Scores
from tactic.kernels.selection.triton import load_always
from tactic.kernels.sparse_decode.partials import Partials

_PASSES = 8
_WAYS = 8
_CLUSTERS = 4096


def select_by_fit(reads: Reads, samples: Samples, scores: Scores, partials: Partials, plan: StepPlan) -> None:
    """As `select`, for requests of `fit`, by its samples."""
    batch, query_heads, most = scores.keys.shape
    _select_by_fit[(batch * query_heads,)](
        scores.keys,
        samples.log_mass,
        scores.sizes,
        partials.lse,
        samples.marks,
        plan.clusters,
        plan.threshold,
        plan.estimator,
        scores.references,
        scores.levels,
        reads.cuts,
        reads.selected,
        query_heads,
        scores.sizes.shape[1],
        most,
        SPLITS=partials.splits,
        READERS=partials.readers,
        READERS_PADDED=triton.next_power_of_2(partials.readers),
        MARKS=MARKS,
        CLUSTERS=min(_CLUSTERS, triton.next_power_of_2(most)),
        LEVELS=LEVELS,
        PASSES=_PASSES,
        WAYS=_WAYS,
        FIT=estimator_id("fit"),
        num_warps=8,
    )


@triton.jit
def _harmonic(x):
    inverse = 1 / x
    square = inverse * inverse
    return tl.log(x) + inverse / 2 - square / 12 + square * square / 120


@triton.jit
def _curve_mass(a, b, begin, end, root):
    """Σ max(0, a/i + b) over begin < i ≤ end, see `estimators.fit.curve_mass`."""
    start = tl.maximum(begin, 1.0)
    last = tl.maximum(tl.minimum(end, root), start)
    return tl.maximum(a * (_harmonic(last) - _harmonic(start)) + b * (last - start), 0.0)


@triton.jit
def _select_by_fit(
    logits,
    log_mass,
    sizes,
    partial_lse,
    marks,
    clusters,
    threshold,
    estimator,
    references,
    levels,
    cuts,
    selected,
    query_heads,
    heads,
    most,
    SPLITS: tl.constexpr,
    READERS: tl.constexpr,
    READERS_PADDED: tl.constexpr,
    MARKS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    LEVELS: tl.constexpr,
    PASSES: tl.constexpr,
    WAYS: tl.constexpr,
    FIT: tl.constexpr,
):
    row = tl.program_id(0)
    request = row // query_heads
    pair = row // (query_heads // heads)
    count = tl.load(clusters + request)
    if (count == 0) | (tl.load(estimator + request) != FIT):
        return
    logits += row.to(tl.int64) * most
    log_mass += row.to(tl.int64) * most
    sizes += pair.to(tl.int64) * most
    marks += row * MARKS
    parts = load_always(partial_lse, row, SPLITS, READERS, READERS_PADDED)

    low, high = score_range(logits, count, CLUSTERS)
    peak = tl.max(parts)
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        logit = tl.load(logits + cluster, mask=cluster < count, other=-float("inf"))
        exact, window1, window2 = in_marks(logit, marks)
        sampled = (exact | window1 | window2) & (cluster < count)
        peak = tl.maximum(peak, tl.max(tl.load(log_mass + cluster, mask=sampled, other=-float("inf"))))

    # Ranks and weight of the exact part and of either window, and the ranks before each window.
    exact_ranks, ranks1, ranks2, before1, before2, ranks = 0, 0, 0, 0, 0, 0
    exact_mass, mass1, mass2 = 0.0, 0.0, 0.0
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        inside = cluster < count
        logit = tl.load(logits + cluster, mask=inside, other=-float("inf"))
        size = tl.load(sizes + cluster, mask=inside, other=0)
        exact, window1, window2 = in_marks(logit, marks)
        sampled = (exact | window1 | window2) & inside
        weight = tl.exp(tl.load(log_mass + cluster, mask=sampled, other=-float("inf")) - peak)
        ranks += tl.sum(size)
        exact_ranks += tl.sum(tl.where(exact, size, 0))
        ranks1 += tl.sum(tl.where(window1, size, 0))
        ranks2 += tl.sum(tl.where(window2, size, 0))
        before1 += tl.sum(tl.where(logit > tl.load(marks + 1), size, 0))
        before2 += tl.sum(tl.where(logit > tl.load(marks + 3), size, 0))
        exact_mass += tl.sum(tl.where(exact, weight, 0.0))
        mass1 += tl.sum(tl.where(window1, weight, 0.0))
        mass2 += tl.sum(tl.where(window2, weight, 0.0))

    mean1, mean2 = mass1 / tl.maximum(ranks1, 1), mass2 / tl.maximum(ranks2, 1)
    x1, x2 = before1 + (ranks1 + 1) / 2, before2 + (ranks2 + 1) / 2
    a = (mean1 - mean2) / tl.where(x2 > x1, 1 / x1 - 1 / x2, 1.0)
    falling = (a > 0) & (x2 > x1)
    a = tl.where(falling, a, 0.0)
    b = tl.where(falling, mean1 - a / x1, (mean1 + mean2) / 2)
    root = tl.where(b < 0, tl.floor(-a / tl.where(b < 0, b, -1.0)), float("inf"))

    always = tl.sum(tl.exp(parts - peak))
    begin = exact_ranks * 1.0
    ranked = exact_mass + _curve_mass(a, b, begin, ranks * 1.0, root)
    needed = tl.load(threshold + request) * (always + ranked) - always

    way = tl.arange(0, WAYS)
    for _ in range(PASSES):
        step = (high - low) / WAYS
        above = tl.zeros((WAYS,), tl.float32)
        rank = tl.zeros((WAYS,), tl.int32)
        for first in range(0, count, CLUSTERS):
            cluster = first + tl.arange(0, CLUSTERS)
            inside = cluster < count
            logit = tl.load(logits + cluster, mask=inside, other=-float("inf"))
            size = tl.load(sizes + cluster, mask=inside, other=0)
            exact = (logit >= tl.load(marks)) & inside
            weight = tl.exp(tl.load(log_mass + cluster, mask=exact, other=-float("inf")) - peak)
            taken = logit[None, :] >= (low + step * way)[:, None]
            above += tl.sum(tl.where(taken, weight[None, :], 0.0), axis=1)
            rank += tl.sum(tl.where(taken, size[None, :], 0), axis=1)
        above += _curve_mass(a, b, begin, rank.to(tl.float32), root)
        enough = tl.max(tl.where(above >= needed, way, 0))
        low += step * enough
        high = low + step
    level = tl.where(needed <= 0, LEVELS, level_of(low - tl.load(references + row)))
    tokens = 0
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        at = (pair.to(tl.int64) * most + cluster) * (query_heads // heads) + row % (query_heads // heads)
        own = tl.load(levels + at, mask=cluster < count, other=-1)
        tokens += tl.sum(tl.where(own >= level, tl.load(sizes + cluster, mask=cluster < count, other=0), 0))
    tl.store(cuts + row, level)
    tl.store(selected + row, tl.load(selected + row) + tokens)
