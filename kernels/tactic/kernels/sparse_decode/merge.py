# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Last launch of a layer: adds up the parts of each query head."""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.step import StepPlan
from tactic.kernels.launch import overlap, start_next, wait_for_previous
from tactic.kernels.sparse_decode.partials import Partials
from tactic.kernels.sparse_decode.trace import Trace

_WARPS = 4


def merge(partials: Partials, trace: Trace, plan: StepPlan, q: Tensor, out: Tensor) -> None:
    """Merges by log-sum-exp.

    Args:
        partials: filled; below `partials.splits` where a request has clusters.
        trace: filled.
        plan: of this step.
        q: `[B, Hq, d]`, contiguous.
        out: `[B, Hq, d]`, filled; 0 where nothing was read.
    """
    batch, query_heads, dim = out.shape
    _merge[(batch * query_heads,)](
        partials.out,
        partials.lse,
        q,
        out,
        trace.queries,
        trace.lse,
        plan.clusters,
        query_heads,
        dim,
        SPLITS=partials.splits,
        READERS=partials.readers,
        PARTS=triton.next_power_of_2(partials.splits + partials.readers),
        D=triton.next_power_of_2(dim),
        num_warps=_WARPS,
        **overlap(out.device),
    )


@triton.jit
def _merge(
    parts_out,
    parts_lse,
    q,
    out,
    queries,
    lse,
    clusters,
    query_heads,
    dim: tl.constexpr,
    SPLITS: tl.constexpr,
    READERS: tl.constexpr,
    PARTS: tl.constexpr,
    D: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    d = tl.arange(0, D)
    query = tl.load(q + row * dim + d, mask=d < dim)
    tl.store(queries + row * dim + d, query.to(queries.dtype.element_ty), mask=d < dim)
    first = tl.where(tl.load(clusters + row // query_heads) > 0, 0, SPLITS)
    known = (part >= first) & (part < SPLITS + READERS)
    at = row * (SPLITS + READERS) + part
    wait_for_previous(OVERLAP)
    start_next(OVERLAP)
    log = tl.load(parts_lse + at, mask=known, other=-float("inf"))
    peak = tl.max(log)
    peak = tl.where(peak == -float("inf"), 0.0, peak)
    share = tl.exp(log - peak)
    weight = tl.sum(share)
    inside = known[:, None] & (d < dim)[None, :]
    values = tl.load(parts_out + at[:, None] * dim + d[None, :], mask=inside, other=0.0)
    # Parts that nothing was read for are undefined; loading them too saves waiting for their weights.
    values = tl.where((log > -float("inf"))[:, None], values, 0.0)
    total = tl.sum(values * share[:, None], axis=0) / tl.where(weight > 0, weight, 1.0)
    tl.store(out + row * dim + d, total.to(out.dtype.element_ty), mask=d < dim)
    tl.store(lse + row, peak + tl.log(weight))
