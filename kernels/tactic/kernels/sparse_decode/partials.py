# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Attention in parts: a running softmax over tiles of keys, and the merging of parts by log-sum-exp.

Logits are kept in base 2 inside the kernels: `exp2` is one instruction.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class Partials:
    """Attention of each query head over parts of what it reads: of what was listed, then of sinks and tail.

    Attributes:
        out: `[≥ B * Hq * (splits + readers), d]` fp32; undefined where `lse` is -inf.
        lse: `[≥ B * Hq * (splits + readers)]` fp32; log of the part's weight.
        splits: parts of what was listed.
        readers: parts of sinks and tail, or of everything where there are no clusters.
    """

    out: Tensor
    lse: Tensor
    splits: int
    readers: int

    @classmethod
    def create(
        cls,
        *,
        rows: int,
        head_dim: int,
        splits: int,
        readers: int,
        device: torch.device | str,
    ) -> "Partials":
        """Room for `rows` parts of query heads."""
        return cls(
            out=torch.zeros(rows, head_dim, dtype=torch.float32, device=device),
            lse=torch.zeros(rows, dtype=torch.float32, device=device),
            splits=splits,
            readers=readers,
        )


def group_shape(q: Tensor, heads: int) -> dict[str, Any]:
    """Constants of a kernel that works on the query heads of a KV head: of `[B, Hq, d]`, H.

    Rows and columns are those of the smallest matrix product.
    """
    group = q.shape[1] // heads
    return {
        "GROUP": group,
        "ROWS": max(16, triton.next_power_of_2(group)),
        "D": max(16, triton.next_power_of_2(q.shape[2])),
        "PRECISION": precision(q),
    }


def precision(q: Tensor) -> str:
    """How matrices are multiplied: fp32 as such."""
    return "ieee" if q.dtype == torch.float32 else "tf32"


@triton.jit
def load_group(q, pair, dim, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """Queries [ROWS, D] of a (request, KV head) pair, zero beyond its group."""
    member = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    at = (pair * GROUP + member)[:, None] * dim + d[None, :]
    return tl.load(q + at, mask=(member < GROUP)[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def fold(query, keys, values, inside, scale, peak, weight, total, PRECISION: tl.constexpr):
    """One tile of keys and values `[T, D]` into a running softmax; at least one token is `inside`."""
    keys = keys.to(query.dtype)
    values = values.to(query.dtype)
    logit = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * (scale * _LOG2_E)
    logit = tl.where(inside[None, :], logit, -float("inf"))
    higher = tl.maximum(peak, tl.max(logit, axis=1))
    shrink = tl.exp2(peak - higher)
    weights = tl.exp2(logit - higher[:, None])
    weight = weight * shrink + tl.sum(weights, axis=1)
    total = total * shrink[:, None] + tl.dot(weights.to(values.dtype), values, input_precision=PRECISION)
    return higher, weight, total


@triton.jit
def fold_rows(
    query, k_pool, v_pool, row, inside, dim, scale, peak, weight, total,
    D: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """`fold` of the rows `slot_id * H + h` [T] of a page-size-1 pool."""
    d = tl.arange(0, D)
    at = row[:, None] * dim + d[None, :]
    valid = inside[:, None] & (d < dim)[None, :]
    key = tl.load(k_pool + at, mask=valid, other=0.0)
    value = tl.load(v_pool + at, mask=valid, other=0.0)
    return fold(query, key, value, inside, scale, peak, weight, total, PRECISION)


@triton.jit
def store_part(
    out,
    lse,
    pair,
    part,
    parts,
    dim,
    peak,
    weight,
    total,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
):
    """Ends a running softmax; where nothing was folded in, only the log-sum-exp of -inf is written."""
    member = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    at = (pair * GROUP + member).to(tl.int64) * parts + part
    mine = member < GROUP
    filled = weight > 0
    valid = (mine & filled)[:, None] & (d < dim)[None, :]
    tl.store(out + at[:, None] * dim + d[None, :], total / tl.where(filled, weight, 1.0)[:, None], mask=valid)
    tl.store(lse + at, (peak + tl.log2(weight)) * _LN_2, mask=mine)
