# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Last launch of a layer: union over a group, its pool rows, attention over them, merging of all parts."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.ranking.triton import Scores
from tactic.kernels.sparse_decode.partials import (
    Partials,
    fold,
    group_shape,
    load_group,
    merge_parts,
    store_part,
)

STRIDE = 16  # consecutive clusters of a program; the next ones go to the next program
_CLUSTERS = 256
_EXPANDED = 1024
_TOKENS = 64
_WARPS = 4
_STAGES = 5  # keys are behind indices: this keeps two tiles in flight


def attend(
    partials: Partials,
    reads: Reads,
    scratch: Tensor,
    cuts: Tensor,
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    *,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> None:
    """Attends to the clusters that any head of a group selects, and adds the parts of sinks and tail.

    Every program takes a share of a KV head's clusters, lists the rows of those selected and attends to them;
    the last one to end adds up the parts of all.

    Args:
        partials: filled below `partials.splits`.
        reads: `lengths` and `selected` are added to, `rows` filled.
        scratch: `[3, ≥ B * H * (K_max + splits * STRIDE)]` int32.
        cuts: `[B, Hq]` fp32; score from which on each query head selects.
        scores: of the layer.
        plan: of this step.
        arena: this layer's index.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        scale: of the logits.
        out: `[B, Hq, d]`, filled.
        lse: `[B, Hq]` fp32, filled; log of the weight that was read.
    """
    batch, query_heads, dim = q.shape
    heads = k_pool.shape[1]
    most = scores.keys.shape[2]
    splits, parts = partials.splits, partials.splits + partials.readers
    share = triton.cdiv(triton.cdiv(most, STRIDE), splits) * STRIDE
    _attend[(batch * heads, splits)](
        q,
        k_pool,
        v_pool,
        req_to_token,
        arena.members,
        plan.slots,
        plan.clusters,
        plan.begins,
        scores.keys,
        scores.sizes,
        scores.firsts,
        cuts,
        scratch,
        reads.rows,
        reads.lengths,
        reads.selected,
        reads.arrived,
        partials.out,
        partials.lse,
        out,
        lse,
        scale,
        heads,
        dim,
        most,
        arena.members.shape[1],
        req_to_token.stride(0),
        reads.rows.shape[2],
        most + splits * STRIDE,
        scratch.stride(0),
        HEADS=triton.next_power_of_2(query_heads // heads),
        STRIDE=STRIDE,
        CLUSTERS=min(_CLUSTERS, triton.next_power_of_2(share)),
        SEARCH=share.bit_length(),
        EXPANDED=min(_EXPANDED, triton.next_power_of_2(reads.rows.shape[2])),
        TOKENS=_TOKENS,
        SPLITS=splits,
        PARTS=parts,
        PARTS_PADDED=triton.next_power_of_2(parts),
        num_stages=_STAGES,
        num_warps=_WARPS,
        **group_shape(q, heads),
        **overlap(q.device),
    )


@triton.jit
def _attend(
    q,
    k_pool,
    v_pool,
    req_to_token,
    members,
    slots,
    clusters,
    begins,
    keys,
    sizes,
    firsts,
    cuts,
    scratch,
    lists,
    lengths,
    selected,
    arrived,
    partial,
    partial_lse,
    out,
    lse,
    scale,
    heads,
    dim,
    most,
    arena_members,
    context,
    list_length,
    scratch_length,
    scratch_stride,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    STRIDE: tl.constexpr,
    CLUSTERS: tl.constexpr,
    SEARCH: tl.constexpr,
    EXPANDED: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    PARTS_PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    pair = tl.program_id(0)
    split = tl.program_id(1)
    request = pair // heads
    head = pair % heads
    count = tl.load(clusters + request)
    wait_for_previous(OVERLAP)
    if count == 0:  # all was read as tail
        if split == 0:
            merge_parts(
                partial, partial_lse, out, lse, pair, SPLITS, PARTS, dim, GROUP, HEADS, PARTS_PADDED, D
            )
        return

    member = tl.arange(0, HEADS)
    cut = tl.load(cuts + pair * GROUP + member, mask=member < GROUP, other=float("inf"))
    share = tl.cdiv(tl.cdiv(count, STRIDE), SPLITS) * STRIDE
    ends = scratch + pair.to(tl.int64) * scratch_length + split * share
    origins = ends + scratch_stride
    starts = origins + scratch_stride
    picked, tokens = _pick(
        keys, sizes, firsts, begins, cut, ends, origins, starts, selected,
        pair, request, split, count, share, most, GROUP, HEADS, STRIDE, CLUSTERS, SPLITS,
    )  # fmt: skip
    list_at = tl.atomic_add(lengths + pair, tokens, sem="relaxed")
    lists += pair.to(tl.int64) * list_length + list_at  # sinks and tail are counted: their places stay free
    tl.debug_barrier()  # the picked clusters are written

    slot_row = req_to_token + tl.load(slots + request).to(tl.int64) * context
    members += head.to(tl.int64) * arena_members
    for first in range(0, tokens, EXPANDED):
        token = first + tl.arange(0, EXPANDED)
        inside = token < tokens
        place = tl.zeros((EXPANDED,), tl.int32)  # clusters that end at or before the token
        for bit in tl.static_range(SEARCH):
            step = 1 << (SEARCH - 1 - bit)
            probe = place + step - 1
            end = tl.load(ends + probe, mask=probe < picked, other=2147483647)
            place = tl.where(end <= token, place + step, place)
        listed = tl.load(origins + place, mask=inside, other=0) + token
        start = tl.load(starts + place, mask=inside, other=0)
        position = start + tl.load(members + listed, mask=inside, other=0).to(tl.int32)
        slot = tl.load(slot_row + position, mask=inside, other=0)
        tl.store(lists + token, slot * heads + head, mask=inside)
    tl.debug_barrier()  # the list is written

    query = load_group(q, pair, dim, GROUP, ROWS, D)
    d = tl.arange(0, D)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, D), tl.float32)
    for first in range(0, tokens, TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = token < tokens
        source = tl.load(lists + token, mask=inside, other=0).to(tl.int64)
        at = source[:, None] * dim + d[None, :]
        valid = inside[:, None] & (d < dim)[None, :]
        key = tl.load(k_pool + at, mask=valid, other=0.0)
        value = tl.load(v_pool + at, mask=valid, other=0.0)
        peak, weight, total = fold(query, key, value, inside, scale, peak, weight, total, PRECISION)
    store_part(partial, partial_lse, pair, split, PARTS, dim, peak, weight, total, GROUP, ROWS, D)

    tl.debug_barrier()  # all of this part is written before it is counted
    if tl.atomic_add(arrived + pair, 1, sem="acq_rel") == SPLITS - 1:
        merge_parts(partial, partial_lse, out, lse, pair, 0, PARTS, dim, GROUP, HEADS, PARTS_PADDED, D)


@triton.jit
def _pick(
    keys,
    sizes,
    firsts,
    begins,
    cut,
    ends,
    origins,
    starts,
    selected,
    pair,
    request,
    split,
    count,
    share,
    most,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    STRIDE: tl.constexpr,
    CLUSTERS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Compacts a program's clusters to those that a query head of the group selects.

    Writes for each where its tokens end in the program's list, what to add to a token's place in the list to
    find it among the members, and the first position of its segment. Returns how many clusters and tokens.
    """
    member = tl.arange(0, HEADS)
    row = (pair * GROUP + member).to(tl.int64) * most
    own = tl.zeros((HEADS,), tl.int32)
    picked = 0
    tokens = 0
    for first in range(0, share, CLUSTERS):
        i = first + tl.arange(0, CLUSTERS)
        cluster = (i // STRIDE * SPLITS + split) * STRIDE + i % STRIDE
        inside = (i < share) & (cluster < count)
        valid = (member < GROUP)[:, None] & inside[None, :]
        key = tl.load(keys + row[:, None] + cluster[None, :], mask=valid, other=-float("inf"))
        at = pair.to(tl.int64) * most + cluster
        size = tl.load(sizes + at, mask=inside, other=0)
        origin = tl.load(firsts + at, mask=inside, other=0)
        start = tl.load(begins + request * most + cluster, mask=inside, other=0)
        taken = ((key >= cut[:, None]) & valid & (size > 0)[None, :]).to(tl.int32)
        own += tl.sum(taken * size[None, :], axis=1)
        any_head = tl.max(taken, axis=0)
        read = any_head * size
        place = picked + tl.cumsum(any_head, axis=0) - any_head
        end = tokens + tl.cumsum(read, axis=0)
        tl.store(ends + place, end, mask=any_head > 0)
        tl.store(origins + place, origin - end + size, mask=any_head > 0)
        tl.store(starts + place, start, mask=any_head > 0)
        picked += tl.sum(any_head)
        tokens += tl.sum(read)
    tl.atomic_add(selected + pair * GROUP + member, own, mask=member < GROUP, sem="relaxed")
    return picked, tokens
