# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Fills the plan of a decode step on the device."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.options import DecodeOptions
from tactic.kernels.index.step import BLOCK, StepPlan
from tactic.kernels.index.table import SegmentTable
from tactic.kernels.index.units import MAX_SEGMENT_TOKENS, UNIT_TOKENS, clusters_in


def plan_step(
    plan: StepPlan,
    table: SegmentTable,
    options: DecodeOptions,
    request_slots: Tensor,
    seq_lens: Tensor,
    cluster_size: int,
    *,
    estimators: Sequence[int],
) -> None:
    """Looks up each request's options and segments.

    Args:
        plan: filled; of the batch's size.
        table: segments of each request slot.
        options: of each request slot.
        request_slots: `[B]` int.
        seq_lens: `[B]` int, the current token included.
        cluster_size: of the arenas.
        estimators: ids that are served; requests of others read everything.
    """
    segments = table.unit.shape[1]
    _plan[(request_slots.shape[0], segments)](
        request_slots,
        seq_lens,
        table.unit,
        table.start,
        table.length,
        table.count,
        options.threshold,
        options.dense,
        options.estimator,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        plan.threshold,
        plan.estimator,
        plan.begins,
        plan.blocks,
        plan.block_rows,
        plan.block_firsts,
        plan.block_sizes,
        plan.block_bases,
        plan.block_begins,
        segments,
        plan.begins.shape[1],
        plan.block_rows.shape[1],
        max(options.min_clustered, options.sinks + 1),
        CLUSTER_SIZE=cluster_size,
        UNIT=UNIT_TOKENS,
        SEGMENTS=triton.next_power_of_2(segments),
        CLUSTERS=clusters_in(MAX_SEGMENT_TOKENS, cluster_size),
        BLOCK=BLOCK,
        SERVED=sum(1 << identifier for identifier in estimators),
    )


@triton.jit
def _plan(
    request_slots,
    request_lens,
    unit,
    start,
    length,
    count,
    threshold,
    dense,
    estimator,
    slots,
    seq_lens,
    clusters,
    clustered,
    plan_threshold,
    plan_estimator,
    begins,
    blocks,
    block_rows,
    block_firsts,
    block_sizes,
    block_bases,
    block_begins,
    segments,
    most,
    most_blocks,
    least_clustered,
    CLUSTER_SIZE: tl.constexpr,
    UNIT: tl.constexpr,
    SEGMENTS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    BLOCK: tl.constexpr,
    SERVED: tl.constexpr,
):
    request = tl.program_id(0)
    segment = tl.program_id(1)
    slot = tl.load(request_slots + request).to(tl.int32)
    used = tl.load(count + slot)
    every = tl.arange(0, SEGMENTS)
    lengths = tl.load(length + slot * segments + every, mask=every < used, other=0)
    per_segment = tl.cdiv(lengths, CLUSTER_SIZE)
    blocks_per_segment = tl.cdiv(per_segment, BLOCK)
    covered = tl.sum(lengths)
    wanted = tl.load(threshold + slot)
    kind = tl.load(estimator + slot)
    reads_all = (tl.load(dense + slot) != 0) | (wanted >= 1) | (covered < least_clustered)
    reads_all |= ((SERVED >> kind) & 1) == 0
    # A padded batch repeats a request slot with a length of its own.
    reads_all |= covered > tl.load(request_lens + request)
    if segment == 0:
        tl.store(slots + request, slot)
        tl.store(seq_lens + request, tl.load(request_lens + request).to(tl.int32))
        tl.store(clusters + request, tl.where(reads_all, 0, tl.sum(per_segment)))
        tl.store(clustered + request, tl.where(reads_all, 0, covered))
        tl.store(blocks + request, tl.where(reads_all, 0, tl.sum(blocks_per_segment)))
        tl.store(plan_threshold + request, wanted)
        tl.store(plan_estimator + request, kind)
    if (segment < used) & (reads_all == 0):
        first_unit = tl.load(unit + slot * segments + segment)
        first_row = first_unit * (UNIT // CLUSTER_SIZE)
        begin = tl.load(start + slot * segments + segment)
        own = tl.sum(tl.where(every == segment, per_segment, 0))
        before = tl.sum(tl.where(every < segment, per_segment, 0))
        cluster = tl.arange(0, CLUSTERS)
        at = request * most + before + cluster
        tl.store(begins + at, tl.zeros_like(cluster) + begin, mask=cluster < own)
        block = tl.arange(0, CLUSTERS // BLOCK)
        at = request * most_blocks + tl.sum(tl.where(every < segment, blocks_per_segment, 0)) + block
        filled = block * BLOCK < own
        tl.store(block_rows + at, first_row + block * BLOCK, mask=filled)
        tl.store(block_firsts + at, before + block * BLOCK, mask=filled)
        tl.store(block_sizes + at, tl.minimum(own - block * BLOCK, BLOCK), mask=filled)
        tl.store(block_bases + at, tl.zeros_like(block) + first_unit * UNIT, mask=filled)
        tl.store(block_begins + at, tl.zeros_like(block) + begin, mask=filled)


@triton.jit
def load_extent(clustered, seq_lens, request, SINKS: tl.constexpr):
    """Of a planned request: clustered positions, sinks among these, and sinks and tail together."""
    length = tl.load(clustered + request)
    fixed = tl.minimum(length, SINKS)
    return length, fixed, fixed + tl.load(seq_lens + request) - length
