# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Centroids in 8 bits, written in place; see `codes.py`."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.codes import LARGEST

_CLUSTERS = 32
_WARPS = 4
_LARGEST = tl.constexpr(float(LARGEST))
_INTEGERS = tl.constexpr(float(3 << 22))  # fp32 numbers around it are the integers: adding it rounds


def encode_into(codes: Tensor, factors: Tensor, centroids: Tensor) -> None:
    """Encodes centroids.

    Args:
        codes: `[H, K, d]` int8, filled; rows of d are contiguous, as those of `centroids`.
        factors: `[H, K]` fp32, filled.
        centroids: `[H, K, d]`, any float dtype.
    """
    heads, count, dim = centroids.shape
    _encode[(heads, triton.cdiv(count, _CLUSTERS))](
        centroids,
        codes,
        factors,
        centroids.stride(0),
        centroids.stride(1),
        codes.stride(0),
        codes.stride(1),
        factors.stride(0),
        count,
        dim,
        CLUSTERS=_CLUSTERS,
        D=triton.next_power_of_2(dim),
        num_warps=_WARPS,
    )


@triton.jit
def _encode(
    centroids,
    codes,
    factors,
    head_stride,
    row_stride,
    code_head_stride,
    code_row_stride,
    factor_head_stride,
    count,
    dim: tl.constexpr,
    CLUSTERS: tl.constexpr,
    D: tl.constexpr,
):
    head = tl.program_id(0).to(tl.int64)
    cluster = tl.program_id(1) * CLUSTERS + tl.arange(0, CLUSTERS)
    d = tl.arange(0, D)
    inside = (cluster < count)[:, None] & (d < dim)[None, :]
    at = centroids + head * head_stride + cluster[:, None] * row_stride + d[None, :]
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    finite = tl.min((tl.abs(value) < float("inf")).to(tl.int32), axis=1) > 0  # NaN is below nothing
    value = tl.where(finite[:, None], value, 0.0)
    largest = tl.max(tl.abs(value), axis=1)
    inverse = tl.where(largest > 0, tl.div_rn(_LARGEST, tl.where(largest > 0, largest, 1.0)), 0.0)
    code = (value * inverse[:, None] + _INTEGERS) - _INTEGERS
    at = codes + head * code_head_stride + cluster[:, None] * code_row_stride + d[None, :]
    tl.store(at, code.to(tl.int8), mask=inside)
    factor = tl.where(finite, tl.div_rn(largest, _LARGEST), float("nan"))
    tl.store(factors + head * factor_head_stride + cluster, factor, mask=cluster < count)
