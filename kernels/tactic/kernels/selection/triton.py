# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Selection without sorting: a search for the score above which enough weight lies.

Two launches narrow the interval that holds it, 32 times each: every program adds up what lies above 32 scores among
its share of a query head's clusters. Clusters within a thousandth of the first interval, which is about 20 wide, of
each other count as ties.
"""

from dataclasses import dataclass
from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.estimators import Guarded, estimator_id
from tactic.kernels.index.step import StepPlan
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.triton import BLOCK, Scores
from tactic.kernels.sparse_decode.partials import Partials

WAYS = 32
_CLUSTERS = 128
_SHARE = 512  # clusters of a program, if there are not many
_COLUMNS = tl.constexpr(16)


@dataclass(frozen=True)
class Search:
    """The interval that holds a query head's cut, after none and after one narrowing, and what lies above its parts.

    Attributes:
        lows: `[2, B, Hq]` fp32; lowest score of the interval.
        needed: `[B, Hq]` fp32; weight that must be selected, relative to `references`.
        references: `[B, Hq]` fp32; log.
        steps: `[B, Hq]` fp32; width of a 32nd of the first interval.
        above: `[2, programs, B, Hq, 32]` fp32; weight at and above each 32nd of the interval.
        tokens: `[2, programs, B, Hq, 32]` int32; members likewise.
    """

    lows: Tensor
    needed: Tensor
    references: Tensor
    steps: Tensor
    above: Tensor
    tokens: Tensor

    @classmethod
    def create(cls, *, batch: int, query_heads: int, clusters: int, device: torch.device | str) -> "Search":
        """Room for `batch` requests of at most `clusters` clusters."""
        programs = min(16, triton.next_power_of_2(triton.cdiv(clusters, _SHARE)))
        shape = batch, query_heads

        def fp32(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=device)

        above = fp32(2, programs, *shape, WAYS)
        return cls(fp32(2, *shape), fp32(*shape), fp32(*shape), fp32(*shape), above, above.to(torch.int32))

    def shrink(self, batch: int) -> "Search":
        """The same for fewer requests, in the same memory."""

        def front(values: Tensor, at: int) -> Tensor:
            shape = list(values.shape)
            shape[at] = batch
            return values.flatten()[: prod(shape)].view(shape)

        return Search(
            front(self.lows, 1),
            self.needed[:batch],
            self.references[:batch],
            self.steps[:batch],
            front(self.above, 2),
            front(self.tokens, 2),
        )


def narrow(search: Search, scores: Scores, partials: Partials, plan: StepPlan, *, sinks: int) -> None:
    """Finds the cut of each query head but for the last choice, which `read_cut` makes.

    Args:
        search: filled, but for requests of `fit`.
        scores: of the layer.
        partials: those of sinks and tail.
        plan: of this step.
        sinks: positions that are always attended.
    """
    batch, query_heads, most = scores.keys.shape
    programs = search.above.shape[1]
    blocks = scores.peaks.shape[2]
    for again in (False, True):
        _narrow[(batch * query_heads, programs)](
            scores.keys,
            scores.sizes,
            scores.peaks,
            scores.masses,
            scores.spreads,
            scores.variances,
            partials.lse,
            plan.clusters,
            plan.clustered,
            plan.threshold,
            plan.estimator,
            search.lows,
            search.needed,
            search.references,
            search.steps,
            search.above,
            search.tokens,
            Guarded.margin,
            Guarded.slope,
            Guarded.least,
            sinks,
            batch * query_heads,
            query_heads,
            scores.sizes.shape[1],
            most,
            blocks,
            AGAIN=again,
            PROGRAMS=programs,
            WAYS=WAYS,
            BLOCK=BLOCK,
            BLOCKS=triton.next_power_of_2(blocks),
            CLUSTERS=min(_CLUSTERS, triton.next_power_of_2(most)),
            SPLITS=partials.splits,
            READERS=partials.readers,
            READERS_PADDED=triton.next_power_of_2(partials.readers),
            FIT=estimator_id("fit"),
            GUARDED=estimator_id("guarded"),
            **overlap(scores.keys.device),
        )


@triton.jit
def load_always(partial_lse, row, SPLITS: tl.constexpr, READERS: tl.constexpr, READERS_PADDED: tl.constexpr):
    """Log-weights of the parts of sinks and tail."""
    reader = tl.arange(0, READERS_PADDED)
    at = row.to(tl.int64) * (SPLITS + READERS) + SPLITS + reader
    return tl.load(partial_lse + at, mask=reader < READERS, other=-float("inf"))


@triton.jit
def _choose(above, tokens, needed, least, row, rows, PROGRAMS: tl.constexpr, WAYS: tl.constexpr):
    """The last 32nd of an interval at and above which enough lies, -1 if there is none; for query heads `[R]`."""
    program = tl.arange(0, PROGRAMS)
    way = tl.arange(0, WAYS)
    at = (program[None, :] * rows + row[:, None])[:, :, None] * WAYS + way[None, None, :]
    weight = tl.sum(tl.load(above + at), axis=1)
    count = tl.sum(tl.load(tokens + at), axis=1)
    enough = (weight >= needed[:, None]) & (count >= least[:, None])
    return tl.max(tl.where(enough, way[None, :], -1), axis=1)


@triton.jit
def read_cut(
    lows,
    needed,
    steps,
    above,
    tokens,
    least,
    row,
    valid,
    rows,
    PROGRAMS: tl.constexpr,
    WAYS: tl.constexpr,
):
    """Scores `[R]` from which on the query heads `row` `[R]` select; inf where nothing need be selected."""
    row = tl.where(valid, row, 0)
    wanted = tl.load(needed + row)
    above += PROGRAMS * rows * WAYS
    tokens += PROGRAMS * rows * WAYS
    way = _choose(above, tokens, wanted, least, row, rows, PROGRAMS, WAYS)
    cut = tl.load(lows + rows + row) + tl.load(steps + row) / WAYS * way
    cut = tl.where(way < 0, -float("inf"), cut)
    return tl.where(valid & ((wanted > 0) | (least > 0)), cut, float("inf"))


@triton.jit
def _narrow(
    keys,
    sizes,
    peaks,
    masses,
    spreads,
    variances,
    partial_lse,
    clusters,
    clustered,
    threshold,
    estimator,
    lows,
    needed,
    references,
    steps,
    above,
    tokens,
    margin,
    slope,
    least_guarded,
    sinks,
    rows,
    query_heads,
    heads,
    most,
    blocks,
    AGAIN: tl.constexpr,
    PROGRAMS: tl.constexpr,
    WAYS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    SPLITS: tl.constexpr,
    READERS: tl.constexpr,
    READERS_PADDED: tl.constexpr,
    FIT: tl.constexpr,
    GUARDED: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    row = tl.program_id(0)
    program = tl.program_id(1)
    request = row // query_heads
    pair = row // (query_heads // heads)
    count = tl.load(clusters + request)
    kind = tl.load(estimator + request)
    wanted_share = tl.load(threshold + request)
    length = tl.load(clustered + request)
    least = tl.where(kind == GUARDED, least_guarded, 0)
    wait_for_previous(OVERLAP)
    if (count == 0) | (kind == FIT):
        return
    if AGAIN:
        reference = tl.load(references + row)
        step = tl.load(steps + row)
        one = tl.zeros((1,), tl.int32)
        wanted = one.to(tl.float32) + tl.load(needed + row)
        way = tl.max(_choose(above, tokens, wanted, one + least, one + row, rows, PROGRAMS, WAYS))
        low = tl.load(lows + row) + step * tl.maximum(way, 0)
        step = step / WAYS
        if program == 0:
            tl.store(lows + rows + row, low)
        above += PROGRAMS * rows * WAYS
        tokens += PROGRAMS * rows * WAYS
    else:
        block = tl.arange(0, BLOCKS)
        used = block * BLOCK < count
        peak = tl.load(peaks + row.to(tl.int64) * blocks + block, mask=used, other=-float("inf"))
        mass = tl.load(masses + row.to(tl.int64) * blocks + block, mask=used, other=0.0)
        parts = load_always(partial_lse, row, SPLITS, READERS, READERS_PADDED)
        high = tl.max(peak)
        reference = tl.maximum(high, tl.max(parts))
        ranked = tl.sum(tl.where(peak > -float("inf"), mass * tl.exp(peak - reference), 0.0))
        always = tl.sum(tl.exp(parts - reference))
        spread = tl.sum(tl.load(spreads + pair.to(tl.int64) * blocks + block, mask=used, other=0.0))
        variance = tl.load(variances + row) * spread / tl.maximum(length - sinks, 1)
        odds = wanted_share / (1 - wanted_share) * tl.exp(margin + slope * variance)
        aim = tl.where(kind == GUARDED, odds / (1 + odds), wanted_share)
        # All that lies so far below the highest score weighs less than what may be left out.
        low = high - tl.log(length / (1 - aim)) - 0.1
        # The fewest tokens that must be read may reach farther down, though hardly below the best of every block.
        lowest = tl.min(tl.where(used & (peak > -float("inf")), peak, high))
        low = tl.where(least > 0, tl.minimum(low, lowest), low)
        step = (high + 1e-3 - low) / WAYS
        if program == 0:
            tl.store(lows + row, low)
            tl.store(steps + row, step)
            tl.store(references + row, reference)
            tl.store(needed + row, aim * ranked - (1 - aim) * always)

    keys += row.to(tl.int64) * most
    sizes += pair.to(tl.int64) * most
    # The sums are a matrix product of what lies above each score with weights and sizes: 22 bits of these count.
    way = tl.arange(0, WAYS)
    edge = (low + step * way)[:, None]
    column = tl.arange(0, _COLUMNS)[None, :]
    sums = tl.zeros((WAYS, _COLUMNS), tl.float32)
    for first in range(program * CLUSTERS, count, PROGRAMS * CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        inside = cluster < count
        key = tl.load(keys + cluster, mask=inside, other=-float("inf"))
        size = tl.load(sizes + cluster, mask=inside, other=0)
        weight = size * tl.exp(key - reference)
        terms = tl.where(column == 0, weight[:, None], tl.where(column == 1, size[:, None], 0.0))
        taken = (key[None, :] >= edge).to(tl.float32)
        sums = tl.dot(taken, terms, sums, input_precision="tf32x3")
    weight_above = tl.sum(tl.where(column == 0, sums, 0.0), axis=1)
    tokens_above = tl.sum(tl.where(column == 1, sums, 0.0), axis=1).to(tl.int32)
    at = (program * rows + row) * WAYS + way
    tl.store(above + at, weight_above)
    tl.store(tokens + at, tokens_above)
