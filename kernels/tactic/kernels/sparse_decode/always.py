# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""First launch of a layer: attention over what is read anyway: sinks and tail, or everything."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.step import StepPlan
from tactic.kernels.index.triton import load_extent
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.sparse_decode.partials import Partials, fold_rows, group_shape, load_group, store_part

_TOKENS = 64
_WARPS = 4
_STAGES = 5  # keys are behind indices: this keeps two tiles in flight


def attend_always(
    partials: Partials,
    reads: Reads,
    plan: StepPlan,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    *,
    scale: float,
    sinks: int,
) -> None:
    """Attends to sinks and tail, and starts the counts of what is read.

    Args:
        partials: filled at and above `partials.splits`.
        reads: `lengths` and `selected` become what is read anyway.
        plan: of this step.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        scale: of the logits.
        sinks: positions that are always attended.
    """
    batch, _, dim = q.shape
    heads = k_pool.shape[1]
    _attend_always[(batch * heads, partials.readers)](
        q,
        k_pool,
        v_pool,
        req_to_token,
        plan.slots,
        plan.seq_lens,
        plan.clustered,
        partials.out,
        partials.lse,
        reads.lengths,
        reads.selected,
        scale,
        heads,
        dim,
        req_to_token.stride(0),
        SINKS=sinks,
        TOKENS=_TOKENS,
        SPLITS=partials.splits,
        READERS=partials.readers,
        num_warps=_WARPS,
        num_stages=_STAGES,
        **group_shape(q, heads),
        **overlap(q.device),
    )


@triton.jit
def _attend_always(
    q,
    k_pool,
    v_pool,
    req_to_token,
    slots,
    seq_lens,
    clustered,
    partial,
    partial_lse,
    lengths,
    selected,
    scale,
    heads,
    dim: tl.constexpr,
    context,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    READERS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    pair = tl.program_id(0)
    reader = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    length, fixed, always = load_extent(clustered, seq_lens, request, SINKS)
    slot_row = req_to_token + tl.load(slots + request).to(tl.int64) * context
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)  # not before: the next kernel does not wait for what came before this one
    if reader == 0:
        member = tl.arange(0, ROWS)
        own = tl.zeros((ROWS,), tl.int32) + always
        tl.store(lengths + pair, always)
        tl.store(selected + pair * GROUP + member, own, mask=member < GROUP)
    query = load_group(q, pair, dim, GROUP, ROWS, D)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, D), tl.float32)
    for begin in range(reader * TOKENS, always, READERS * TOKENS):
        token = begin + tl.arange(0, TOKENS)
        inside = token < always
        position = tl.where(token < fixed, token, token - fixed + length)
        slot = tl.load(slot_row + position, mask=inside, other=0).to(tl.int64)
        peak, weight, total = fold_rows(
            query, k_pool, v_pool, slot * heads + head, inside, dim, scale, peak, weight, total, D, PRECISION
        )
    parts = SPLITS + READERS
    place = SPLITS + reader
    store_part(partial, partial_lse, pair, place, parts, dim, peak, weight, total, GROUP, ROWS, D)
