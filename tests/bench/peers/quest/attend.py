"""Attention of each KV head's queries over its list of rows, in parts, and their merging."""

import triton
import triton.language as tl
from peers.quest.naive import PAGE
from torch import Tensor

from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.sparse_decode.partials import fold_rows, group_shape, load_group, store_part

_TOKENS = 64


def attend(
    partial: Tensor,
    partial_lse: Tensor,
    rows: Tensor,
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    seq_lens: Tensor,
    scale: float,
) -> None:
    """Parts of the attention over the rows listed; see `QuestRunner`."""
    batch, _, dim = q.shape
    heads = k_pool.shape[1]
    splits = partial.shape[2]
    _attend[(batch * heads, splits)](
        q,
        k_pool,
        v_pool,
        rows,
        seq_lens,
        partial,
        partial_lse,
        scale,
        heads,
        dim,
        rows.shape[2],
        TOKENS=_TOKENS,
        SPLITS=splits,
        PAGE=PAGE,
        num_warps=4,
        num_stages=4,
        **group_shape(q, heads),
        **overlap(q.device),
    )


@triton.jit
def _attend(
    q,
    k_pool,
    v_pool,
    rows,
    seq_lens,
    partial,
    partial_lse,
    scale,
    heads,
    dim,
    most,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    SPLITS: tl.constexpr,
    PAGE: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    pair = tl.program_id(0)
    split = tl.program_id(1)
    query = load_group(q, pair, dim, GROUP, ROWS, D)
    listed = tl.minimum(most, tl.cdiv(tl.load(seq_lens + pair // heads), PAGE) * PAGE)
    share = tl.cdiv(tl.cdiv(listed, SPLITS), TOKENS) * TOKENS
    end = tl.minimum(listed, (split + 1) * share)
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, D), tl.float32)
    for begin in range(split * share, end, TOKENS):
        token = begin + tl.arange(0, TOKENS)
        at = tl.load(rows + pair.to(tl.int64) * most + token, mask=token < end, other=-1).to(tl.int64)
        inside = at >= 0
        # A tile's rows are never all missing: only the last page may end early.
        peak, weight, total = fold_rows(
            query, k_pool, v_pool, at, inside, dim, scale, peak, weight, total, D, PRECISION
        )
    store_part(partial, partial_lse, pair, split, SPLITS, dim, peak, weight, total, GROUP, ROWS, D)


def merge(out: Tensor, lse: Tensor, partial: Tensor, partial_lse: Tensor) -> None:
    """Adds up the parts of each query head."""
    batch, query_heads, splits, dim = partial.shape
    _merge[(batch * query_heads,)](
        partial,
        partial_lse,
        out,
        lse,
        dim,
        SPLITS=splits,
        PARTS=triton.next_power_of_2(splits),
        D=triton.next_power_of_2(dim),
        num_warps=4,
        **overlap(out.device),
    )


@triton.jit
def _merge(
    partial,
    partial_lse,
    out,
    lse,
    dim,
    SPLITS: tl.constexpr,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0)
    d = tl.arange(0, D)
    part = tl.arange(0, PARTS)
    at = row.to(tl.int64) * SPLITS + part
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    log = tl.load(partial_lse + at, mask=part < SPLITS, other=-float("inf"))
    peak = tl.max(log)
    share = tl.exp(log - peak)
    weight = tl.sum(share)
    parts = tl.load(
        partial + at[:, None] * dim + d[None, :],
        mask=(log > -float("inf"))[:, None] & (d < dim)[None, :],  # empty parts are undefined
        other=0.0,
    )
    total = tl.sum(parts * (share / weight)[:, None], axis=0)
    tl.store(out + row * dim + d, total.to(out.dtype.element_ty), mask=d < dim)
    tl.store(lse + row, peak + tl.log(weight))
