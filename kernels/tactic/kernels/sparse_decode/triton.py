# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Attention over lists of pool slots."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.step import StepPlan
from tactic.kernels.index.triton import load_extent
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.index_map.triton import Listing
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.sparse_decode.partials import Partials, fold_rows, group_shape, load_group, store_part

_TOKENS = 128  # of a tile, at most
_TILE_BYTES = 1 << 15  # of the keys of a tile: two of keys and values are in flight
_WARPS = 4
_STAGES = 5  # keys are behind indices: this keeps two tiles in flight


def attend(
    partials: Partials,
    reads: Reads,
    listing: Listing,
    plan: StepPlan,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    *,
    scale: float,
    sinks: int,
) -> None:
    """Attends to what has been listed, in even shares; where that is everything, by position.

    Args:
        partials: filled below `partials.splits` where a request has clusters.
        reads: of the layer.
        listing: `listed` cleared.
        plan: of this step.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        scale: of the logits.
        sinks: positions that are always attended.
    """
    batch, _, dim = q.shape
    heads, context = reads.slots.shape[1:]
    shape = group_shape(q, heads)
    _attend[(batch * heads, partials.splits)](
        q,
        k_pool,
        v_pool,
        req_to_token,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        reads.lengths,
        reads.slots,
        listing.listed,
        partials.out,
        partials.lse,
        scale,
        heads,
        dim,
        req_to_token.stride(0),
        context,
        SINKS=sinks,
        TOKENS=min(_TOKENS, _TILE_BYTES // (shape["D"] * q.element_size())),
        SPLITS=partials.splits,
        PARTS=partials.splits + partials.readers,
        LISTERS=listing.listers,
        LISTERS_PADDED=triton.next_power_of_2(listing.listers),
        num_stages=_STAGES,
        num_warps=_WARPS,
        **shape,
        **overlap(q.device),
    )


@triton.jit
def _attend(
    q,
    k_pool,
    v_pool,
    req_to_token,
    request_slots,
    seq_lens,
    clusters,
    clustered,
    lengths,
    slots,
    listed,
    partial,
    partial_lse,
    scale,
    heads,
    dim: tl.constexpr,
    row_length,
    context,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    LISTERS: tl.constexpr,
    LISTERS_PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    start_next(OVERLAP)
    pair = tl.program_id(0)
    split = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    if tl.load(clusters + request) == 0:
        wait_for_previous(OVERLAP)
        return
    length, fixed, always = load_extent(clustered, seq_lens, request, SINKS)
    slot_row = req_to_token + tl.load(request_slots + request).to(tl.int64) * row_length
    query = load_group(q, pair, dim, GROUP, ROWS, D)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, D), tl.float32)
    wait_for_previous(OVERLAP)
    here = tl.load(lengths + pair) - always
    share = tl.cdiv(tl.cdiv(here, SPLITS), TOKENS) * TOKENS
    start = split * share
    tokens = tl.minimum(share, here - start)
    if here == length - fixed:
        source = slot_row + fixed + start
    else:
        source = slots + pair.to(tl.int64) * context + start
    for begun in range(0, tokens, TOKENS):
        token = begun + tl.arange(0, TOKENS)
        inside = token < tokens
        slot = tl.load(source + token, mask=inside, other=0).to(tl.int64)
        peak, weight, total = fold_rows(
            query, k_pool, v_pool, slot * heads + head, inside, dim, scale, peak, weight, total, D, PRECISION
        )
    store_part(partial, partial_lse, pair, split, PARTS, dim, peak, weight, total, GROUP, ROWS, D)
    if split == 0:
        lister = tl.arange(0, LISTERS_PADDED)
        tl.store(listed + pair * LISTERS + lister, tl.zeros_like(lister), mask=lister < LISTERS)
