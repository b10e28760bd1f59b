# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Writes the rows that each KV head reads: sinks, members cluster by cluster, tail."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan
from tactic.kernels.ranking.triton import Scores
from tactic.kernels.union.triton import Reads

_CLUSTERS = 32
_MEMBERS = 32
_TOKENS = 256


def write_rows(
    indices: Tensor,
    indptr: Tensor,
    reads: Reads,
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    req_to_token: Tensor,
    *,
    sinks: int,
    writers: int,
) -> None:
    """Fills the lists of a page-size-1 cache, in the order of clusters rather than of positions.

    Args:
        indices: int32, filled up to `indptr[-1]`; rows `slot_id * H + h`.
        indptr: `[B * H + 1]` int32, filled.
        reads: clusters and lengths.
        scores: first members and sizes.
        plan: of this step.
        arena: this layer's index.
        req_to_token: `[R, max_context]` int32.
        sinks: positions that are always attended.
        writers: programs that share a head's list.
    """
    batch, heads, most = reads.offsets.shape
    _write[(batch * heads, writers)](
        arena.members,
        req_to_token,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        plan.begins,
        scores.firsts,
        scores.sizes,
        reads.offsets,
        reads.lengths,
        indices,
        indptr,
        batch * heads,
        heads,
        most,
        arena.members.shape[1],
        req_to_token.stride(0),
        SINKS=sinks,
        PAIRS=triton.next_power_of_2(batch * heads),
        CLUSTERS=_CLUSTERS,
        MEMBERS=_MEMBERS,
        TOKENS=_TOKENS,
        WRITERS=writers,
    )


@triton.jit
def _write(
    members,
    req_to_token,
    slots,
    seq_lens,
    clusters,
    clustered,
    begins,
    firsts,
    sizes,
    offsets,
    lengths,
    indices,
    indptr,
    pairs,
    heads,
    most,
    arena_members,
    context,
    SINKS: tl.constexpr,
    PAIRS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    MEMBERS: tl.constexpr,
    TOKENS: tl.constexpr,
    WRITERS: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    writer = tl.program_id(1)
    every = tl.arange(0, PAIRS)
    all_lengths = tl.load(lengths + every, mask=every < pairs, other=0)
    base = tl.sum(tl.where(every < pair, all_lengths, 0)).to(tl.int64)
    if (pair == 0) & (writer == 0):
        tl.store(indptr, 0)
        tl.store(indptr + 1 + every, tl.cumsum(all_lengths, axis=0), mask=every < pairs)

    request = pair // heads
    head = pair % heads
    count = tl.load(clusters + request)
    length = tl.load(clustered + request)
    fixed = tl.minimum(length, SINKS)
    slot_row = req_to_token + tl.load(slots + request).to(tl.int64) * context
    for block in range(writer, tl.cdiv(count, CLUSTERS), WRITERS):
        cluster = block * CLUSTERS + tl.arange(0, CLUSTERS)
        at = pair * most + cluster
        offset = tl.load(offsets + at, mask=cluster < count, other=-1)
        size = tl.where(offset >= 0, tl.load(sizes + at, mask=cluster < count, other=0), 0)
        longest = tl.max(size)
        if longest > 0:
            first = head * arena_members + tl.load(firsts + at, mask=cluster < count, other=0)
            begin = tl.load(begins + request * most + cluster, mask=cluster < count, other=0)
            for start in range(0, longest, MEMBERS):
                member = start + tl.arange(0, MEMBERS)
                inside = member[None, :] < size[:, None]
                position = tl.load(members + first[:, None] + member[None, :], mask=inside, other=0)
                slot = tl.load(slot_row + begin[:, None] + position, mask=inside, other=0)
                target = base + fixed + offset[:, None] + member[None, :]
                tl.store(indices + target, slot * heads + head.to(tl.int32), mask=inside)

    always = fixed + tl.load(seq_lens + request) - length
    united = tl.load(lengths + pair) - always
    for start in range(writer * TOKENS, always, WRITERS * TOKENS):
        token = start + tl.arange(0, TOKENS)
        inside = token < always
        sink = token < fixed
        slot = tl.load(slot_row + tl.where(sink, token, token - fixed + length), mask=inside, other=0)
        target = base + tl.where(sink, token, token + united)
        tl.store(indices + target, slot * heads + head.to(tl.int32), mask=inside)
