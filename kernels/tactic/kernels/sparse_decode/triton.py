# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Union over a group, the pool slots of what it selects, and attention over them."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.levels import LEVELS
from tactic.kernels.ranking.triton import Scores
from tactic.kernels.sparse_decode.partials import Partials, fold_rows, group_shape, load_group, store_part
from tactic.kernels.union.naive import NEARLY_ALL

RUN = 8  # neighbours among clusters that one program takes: a sector of their levels and sizes
_MOST_CLUSTERS = 1024  # clusters that a program looks through at once
_PICKED = 16  # clusters whose members are listed at once
_MEMBERS = 128
_TOKENS = 64
_WARPS = 4
_STAGES = 5  # keys are behind indices: this keeps two tiles in flight


def attend(
    partials: Partials,
    reads: Reads,
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    *,
    scale: float,
    sinks: int,
) -> None:
    """Attends to the clusters that any head of a group selects, and clears the tally of scores.

    The programs of a KV head share its clusters out in short runs, in turn: what lies together is sought
    together. Where some head selects nearly everything, all is read, in even shares of the positions.

    Args:
        partials: filled below `partials.splits`.
        reads: `lengths` added to, `slots` filled.
        scores: of the layer; `tally` cleared.
        plan: of this step.
        arena: this layer's index.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        scale: of the logits.
        sinks: positions that are always attended.
    """
    batch, _, dim = q.shape
    heads, most = scores.sizes.shape[1:]
    splits = partials.splits
    part, whole = NEARLY_ALL
    each = triton.cdiv(most, splits)
    share = triton.cdiv(LEVELS, splits)
    _attend[(batch * heads, splits)](
        q,
        k_pool,
        v_pool,
        req_to_token,
        arena.members,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        plan.begins,
        scores.levels,
        scores.tally,
        scores.sizes,
        scores.firsts,
        reads.cuts,
        reads.selected,
        reads.lengths,
        reads.slots,
        partials.picked,
        partials.out,
        partials.lse,
        scale,
        heads,
        dim,
        most,
        arena.members.shape[1],
        req_to_token.stride(0),
        reads.slots.shape[2],
        SINKS=sinks,
        LEVELS=LEVELS,
        SHARE=share,
        SHARE_PADDED=triton.next_power_of_2(share),
        MEMBERS_OF_GROUP=triton.next_power_of_2(q.shape[1] // heads),
        RUN=RUN,
        CLUSTERS=min(_MOST_CLUSTERS, max(RUN, triton.next_power_of_2(each + 1) // 2)),
        PICKED=_PICKED,
        MEMBERS=_MEMBERS,
        TOKENS=_TOKENS,
        SPLITS=splits,
        PARTS=splits + partials.readers,
        PART=part,
        WHOLE=whole,
        num_stages=_STAGES,
        num_warps=_WARPS,
        **group_shape(q, heads),
        **overlap(q.device),
    )


@triton.jit
def _list_members(
    slots, slot_row, members, picked, number,
    CLUSTERS: tl.constexpr, PICKED: tl.constexpr, MEMBERS: tl.constexpr,
):  # fmt: skip
    """Lists the pool slots of the members of the clusters that have been picked."""
    for place in range(0, number, PICKED):
        at = picked + place + tl.arange(0, PICKED)
        valid = place + tl.arange(0, PICKED) < number
        size = tl.load(at, mask=valid, other=0)[:, None]
        first = tl.load(at + CLUSTERS, mask=valid, other=0)[:, None]
        begin = tl.load(at + 2 * CLUSTERS, mask=valid, other=0)[:, None]
        start = tl.load(at + 3 * CLUSTERS, mask=valid, other=0)[:, None]
        for done in range(0, tl.max(size), MEMBERS):
            member = done + tl.arange(0, MEMBERS)[None, :]
            inside = member < size
            position = begin + tl.load(members + first + member, mask=inside, other=0).to(tl.int32)
            slot = tl.load(slot_row + position, mask=inside, other=0)
            tl.store(slots + start + member, slot, mask=inside)


@triton.jit
def _attend(
    q,
    k_pool,
    v_pool,
    req_to_token,
    members,
    request_slots,
    seq_lens,
    clusters,
    clustered,
    begins,
    levels,
    tally,
    sizes,
    firsts,
    cuts,
    selected,
    lengths,
    slots,
    picked,
    partial,
    partial_lse,
    scale,
    heads,
    dim,
    most,
    arena_members,
    row_length,
    context,
    SINKS: tl.constexpr,
    LEVELS: tl.constexpr,
    SHARE: tl.constexpr,
    SHARE_PADDED: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    MEMBERS_OF_GROUP: tl.constexpr,
    RUN: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PICKED: tl.constexpr,
    MEMBERS: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    PART: tl.constexpr,
    WHOLE: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    pair = tl.program_id(0)
    split = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    count = tl.load(clusters + request)
    length = tl.load(clustered + request)
    fixed = tl.minimum(length, SINKS)
    always = fixed + tl.load(seq_lens + request) - length
    slot_row = req_to_token + tl.load(request_slots + request).to(tl.int64) * row_length
    slots += pair.to(tl.int64) * context
    picked += (pair * SPLITS + split) * (4 * CLUSTERS)
    query = load_group(q, pair, dim, GROUP, ROWS, D)
    member = tl.arange(0, MEMBERS_OF_GROUP)
    mine = member < GROUP
    row = (pair * GROUP + member).to(tl.int64)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    sums = tl.zeros((ROWS, D), tl.float32)
    for base in range(0, count, SPLITS * CLUSTERS):
        own = tl.arange(0, CLUSTERS)
        cluster = base + (own // RUN * SPLITS + split) * RUN + own % RUN
        inside = cluster < count
        at = pair.to(tl.int64) * most + cluster
        # What is from two launches before may not be known to L1 yet.
        level = tl.load(
            levels + row[None, :] * most + cluster[:, None],
            mask=inside[:, None] & mine[None, :], other=-1, cache_modifier=".cg",
        )  # fmt: skip
        size = tl.load(sizes + at, mask=inside, other=0, cache_modifier=".cg")
        first = tl.load(firsts + at, mask=inside, other=0, cache_modifier=".cg")
        begin = tl.load(begins + request.to(tl.int64) * most + cluster, mask=inside, other=0)
        wait_for_previous(OVERLAP)

        cut = tl.load(cuts + row, mask=mine, other=LEVELS)
        asked = tl.max(tl.load(selected + row, mask=mine, other=0)) - always
        taken = tl.max((level >= cut[None, :]).to(tl.int32), axis=1)
        size = tl.where(taken > 0, size, 0)
        if asked * WHOLE >= (length - fixed) * PART:
            quota = tl.cdiv(tl.cdiv(length - fixed, SPLITS), TOKENS) * TOKENS
            start = tl.minimum(split * quota, length - fixed)
            tokens = tl.where(base == 0, tl.minimum(quota, length - fixed - start), 0)
            tl.atomic_add(lengths + pair, tokens, sem="relaxed")
            source = slot_row + fixed + start
        else:
            flag = (size > 0).to(tl.int32)
            end = tl.cumsum(size)
            tokens = tl.sum(size)
            number = tl.sum(flag)
            source = slots + tl.atomic_add(lengths + pair, tokens, sem="relaxed")
            tl.debug_barrier()  # the list before this one has been attended to
            at_place = picked + tl.cumsum(flag) - 1
            tl.store(at_place, size, mask=flag > 0)
            tl.store(at_place + CLUSTERS, first, mask=flag > 0)
            tl.store(at_place + 2 * CLUSTERS, begin, mask=flag > 0)
            tl.store(at_place + 3 * CLUSTERS, end - size, mask=flag > 0)
            tl.debug_barrier()  # the clusters are picked
            own_members = members + head * arena_members
            _list_members(source, slot_row, own_members, picked, number, CLUSTERS, PICKED, MEMBERS)
            tl.debug_barrier()  # the list is written
        for begun in range(0, tokens, TOKENS):
            token = begun + tl.arange(0, TOKENS)
            valid = token < tokens
            slot = tl.load(source + token, mask=valid, other=0).to(tl.int64)
            peak, weight, sums = fold_rows(
                query,
                k_pool,
                v_pool,
                slot * heads + head,
                valid,
                dim,
                scale,
                peak,
                weight,
                sums,
                D,
                PRECISION,
            )
    wait_for_previous(OVERLAP)
    store_part(partial, partial_lse, pair, split, PARTS, dim, peak, weight, sums, GROUP, ROWS, D)
    if count > 0:
        share = tl.arange(0, SHARE_PADDED)
        level = split * SHARE + share
        clear = mine[:, None] & ((share < SHARE) & (level < LEVELS))[None, :]
        tl.store(
            tally + row[:, None] * LEVELS + level[None, :], tl.zeros_like(clear.to(tl.int32)), mask=clear
        )
