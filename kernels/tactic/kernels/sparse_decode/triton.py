# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Split-KV decode attention over listed rows; how a list is split is decided on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.ranking.triton import load_group

_TOKENS = 64
_STAGES = 5  # rows are behind indices: this keeps two tiles of keys and values in flight


def sparse_decode_triton(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    indices: Tensor,
    indptr: Tensor,
    scale: float,
    *,
    partial: Tensor,
    partial_lse: Tensor,
    splits: int,
    out: Tensor,
    lse: Tensor,
) -> None:
    """`sparse_decode` into given buffers, without looking at the lists from the host.

    Args:
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        indices: int32, rows `slot_id * H + h`.
        indptr: `[B * H + 1]` int32.
        scale: of the logits.
        partial: `[≥ B * Hq * splits, d]` fp32, workspace.
        partial_lse: `[≥ B * Hq * splits]` fp32, workspace.
        splits: parts that each list is cut into at most.
        out: `[B, Hq, d]`, filled.
        lse: `[B, Hq]` fp32, filled.
    """
    batch, query_heads, dim = q.shape
    heads = k_pool.shape[1]
    block_d = max(16, triton.next_power_of_2(dim))
    _attend[(batch * heads, splits)](
        q,
        k_pool,
        v_pool,
        indices,
        indptr,
        partial,
        partial_lse,
        scale,
        dim,
        splits,
        GROUP=query_heads // heads,
        ROWS=max(16, triton.next_power_of_2(query_heads // heads)),
        D=block_d,
        TOKENS=_TOKENS,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_stages=_STAGES,
    )
    _merge[(batch * query_heads,)](
        partial, partial_lse, out, lse, dim, splits, SPLITS=triton.next_power_of_2(splits), D=block_d
    )


@triton.jit
def _attend(
    q,
    k_pool,
    v_pool,
    indices,
    indptr,
    partial,
    partial_lse,
    scale,
    dim,
    splits,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pair = tl.program_id(0)
    split = tl.program_id(1)
    begin = tl.load(indptr + pair)
    length = tl.load(indptr + pair + 1) - begin
    share = tl.cdiv(tl.cdiv(length, splits), TOKENS) * TOKENS
    first = split * share
    last = tl.minimum(first + share, length)
    member = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    query = load_group(q, pair, dim, GROUP, ROWS, D)
    peak = tl.full((ROWS,), -float("inf"), tl.float32)
    weight = tl.zeros((ROWS,), tl.float32)
    total = tl.zeros((ROWS, D), tl.float32)
    for start in range(first, last, TOKENS):
        token = start + tl.arange(0, TOKENS)
        inside = token < last
        row = tl.load(indices + begin.to(tl.int64) + token, mask=inside, other=0).to(tl.int64)
        at = row[:, None] * dim + d[None, :]
        valid = inside[:, None] & (d < dim)[None, :]
        keys = tl.load(k_pool + at, mask=valid, other=0.0)
        values = tl.load(v_pool + at, mask=valid, other=0.0)
        logit = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
        logit = tl.where(inside[None, :], logit, -float("inf"))
        higher = tl.maximum(peak, tl.max(logit, axis=1))
        shrink = tl.exp(peak - higher)
        weights = tl.exp(logit - higher[:, None])
        weight = weight * shrink + tl.sum(weights, axis=1)
        total = total * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
        peak = higher
    at = (pair * GROUP + member).to(tl.int64) * splits + split
    valid = (member < GROUP)[:, None] & (d < dim)[None, :]
    filled = tl.where(weight > 0, weight, 1.0)
    tl.store(partial + at[:, None] * dim + d[None, :], total / filled[:, None], mask=valid)
    tl.store(partial_lse + at, peak + tl.log(weight), mask=member < GROUP)


@triton.jit
def _merge(partial, partial_lse, out, lse, dim, splits, SPLITS: tl.constexpr, D: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    d = tl.arange(0, D)
    parts = tl.load(partial_lse + row * splits + split, mask=split < splits, other=-float("inf"))
    peak = tl.max(parts)
    safe_peak = tl.where(peak == -float("inf"), 0.0, peak)
    weights = tl.exp(parts - safe_peak)
    weight = tl.sum(weights)
    at = (row * splits + split)[:, None] * dim + d[None, :]
    values = tl.load(partial + at, mask=(split < splits)[:, None] & (d < dim)[None, :], other=0.0)
    total = tl.sum(values * weights[:, None], axis=0) / tl.where(weight > 0, weight, 1.0)
    tl.store(out + row * dim + d, total.to(out.dtype.element_ty), mask=d < dim)
    tl.store(lse + row, safe_peak + tl.log(weight))
