# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Samples for `fit` on the device: scores that bound the sampled ranks, true weights of their clusters.

Ranks are sampled in whole clusters: a cluster that holds any rank of the exact part or of a window is read.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.estimators import Fit, estimator_id
from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan
from tactic.kernels.ranking.triton import Scores

MARKS = 5  # last exact rank, first and last of either window
_FIT = estimator_id("fit")
_PASSES = 8
_WAYS = 8
_CHUNK = 4096
_CLUSTERS = 8
_MEMBERS = 16


@dataclass(frozen=True)
class Samples:
    """What `fit` measured; undefined for other requests.

    Attributes:
        marks: `[B, Hq, 5]` fp32; scores at the last exact rank and at the ends of either window.
        log_mass: `[B, Hq, K_max]` fp32; log of the true weight of the clusters between the marks.
    """

    marks: Tensor
    log_mass: Tensor

    @classmethod
    def create(cls, *, batch: int, query_heads: int, clusters: int, device: torch.device | str) -> "Samples":
        """Room for `batch` requests of at most `clusters` clusters."""
        return cls(
            marks=torch.zeros(batch, query_heads, MARKS, dtype=torch.float32, device=device),
            log_mass=torch.zeros(batch, query_heads, clusters, dtype=torch.float32, device=device),
        )


def sample(
    samples: Samples,
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    q: Tensor,
    k_pool: Tensor,
    req_to_token: Tensor,
    fit: Fit,
    *,
    scale: float,
    sinks: int,
    samplers: int,
) -> None:
    """Reads the keys that `fit` samples, for requests of `fit` only.

    Args:
        samples: filled.
        scores: of the layer.
        plan: of this step.
        arena: this layer's index.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        fit: settings.
        scale: of the logits.
        sinks: positions that are always attended.
        samplers: programs that share a query head's clusters.
    """
    batch, query_heads, dim = q.shape
    heads = k_pool.shape[1]
    most = plan.begins.shape[1]
    _mark[(batch * query_heads, MARKS)](
        scores.keys,
        scores.sizes,
        plan.clusters,
        plan.clustered,
        plan.estimator,
        samples.marks,
        fit.exact_fraction,
        *fit.windows,
        query_heads,
        heads,
        most,
        SINKS=sinks,
        WINDOW=fit.window,
        MARKS=MARKS,
        CLUSTERS=min(_CHUNK, triton.next_power_of_2(most)),
        PASSES=_PASSES,
        WAYS=_WAYS,
        FIT=_FIT,
        num_warps=8,
    )
    _sample[(batch * query_heads, samplers)](
        q,
        k_pool,
        arena.members,
        req_to_token,
        plan.slots,
        plan.clusters,
        plan.estimator,
        plan.begins,
        scores.keys,
        scores.firsts,
        scores.sizes,
        samples.marks,
        samples.log_mass,
        scale,
        query_heads,
        heads,
        dim,
        most,
        arena.members.shape[1],
        req_to_token.stride(0),
        MARKS=MARKS,
        D=triton.next_power_of_2(dim),
        CLUSTERS=_CLUSTERS,
        MEMBERS=_MEMBERS,
        SAMPLERS=samplers,
        FIT=_FIT,
    )


@triton.jit
def score_range(logits, count, CLUSTERS: tl.constexpr):
    """Lowest score, and a little more than the highest, of clusters that hold more than sinks."""
    low, high = float("inf"), -float("inf")
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        logit = tl.load(logits + cluster, mask=cluster < count, other=float("inf"))
        low = tl.minimum(low, tl.min(tl.where(logit > -float("inf"), logit, float("inf"))))
        high = tl.maximum(high, tl.max(tl.where(cluster < count, logit, -float("inf"))))
    return low, high + 1e-6 * (high - low) + 1e-6


@triton.jit
def in_marks(logit, marks):
    """Whether clusters of these scores hold an exact rank, a rank of the first window, of the second."""
    exact = logit >= tl.load(marks)
    first = (logit <= tl.load(marks + 1)) & (logit >= tl.load(marks + 2))
    second = (logit <= tl.load(marks + 3)) & (logit >= tl.load(marks + 4))
    return exact, first, second


@triton.jit
def _mark(
    logits,
    sizes,
    clusters,
    clustered,
    estimator,
    marks,
    exact_fraction,
    first_window,
    second_window,
    query_heads,
    heads,
    most,
    SINKS: tl.constexpr,
    WINDOW: tl.constexpr,
    MARKS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PASSES: tl.constexpr,
    WAYS: tl.constexpr,
    FIT: tl.constexpr,
):
    row = tl.program_id(0)
    mark = tl.program_id(1)
    request = row // query_heads
    pair = row // (query_heads // heads)
    count = tl.load(clusters + request)
    if (count == 0) | (tl.load(estimator + request) != FIT):
        return
    marks += row * MARKS + mark
    length = tl.load(clustered + request)
    ranks = length - tl.minimum(length, SINKS)
    exact = tl.ceil(exact_fraction * ranks).to(tl.int32)
    if ranks <= exact + 2 * WINDOW:  # sampling would read everything: all is exact, the windows are empty
        tl.store(marks, tl.where(mark == 0, -float("inf"), float("inf")))
        return
    at = tl.where(mark < 3, first_window, second_window)
    begin = tl.floor(at * ranks + 0.5).to(tl.int32) - WINDOW // 2
    begin = tl.minimum(tl.maximum(begin, exact), ranks - WINDOW)
    last = (mark == 2) | (mark == 4)
    target = tl.where(mark == 0, exact, begin + tl.where(last, WINDOW, 1))

    logits += row.to(tl.int64) * most
    sizes += pair.to(tl.int64) * most
    low, high = score_range(logits, count, CLUSTERS)
    way = tl.arange(0, WAYS)
    for _ in range(PASSES):
        step = (high - low) / WAYS
        above = tl.zeros((WAYS,), tl.int32)
        for first in range(0, count, CLUSTERS):
            cluster = first + tl.arange(0, CLUSTERS)
            logit = tl.load(logits + cluster, mask=cluster < count, other=-float("inf"))
            size = tl.load(sizes + cluster, mask=cluster < count, other=0)
            taken = logit[None, :] >= (low + step * way)[:, None]
            above += tl.sum(tl.where(taken, size[None, :], 0), axis=1)
        enough = tl.max(tl.where(above >= target, way, 0))
        low += step * enough
        high = low + step
    found = float("inf")
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        logit = tl.load(logits + cluster, mask=cluster < count, other=-float("inf"))
        found = tl.minimum(found, tl.min(tl.where(logit >= low, logit, float("inf"))))
    tl.store(marks, found)


@triton.jit
def _sample(
    q,
    k_pool,
    members,
    req_to_token,
    slots,
    clusters,
    estimator,
    begins,
    logits,
    firsts,
    sizes,
    marks,
    log_mass,
    scale,
    query_heads,
    heads,
    dim,
    most,
    arena_members,
    context,
    MARKS: tl.constexpr,
    D: tl.constexpr,
    CLUSTERS: tl.constexpr,
    MEMBERS: tl.constexpr,
    SAMPLERS: tl.constexpr,
    FIT: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    request = row // query_heads
    pair = row // (query_heads // heads)
    head = pair % heads
    count = tl.load(clusters + request)
    if (count == 0) | (tl.load(estimator + request) != FIT):
        return
    d = tl.arange(0, D)
    query = tl.load(q + row * dim + d, mask=d < dim, other=0.0).to(tl.float32) * scale
    slot_row = req_to_token + tl.load(slots + request).to(tl.int64) * context
    for block in range(tl.program_id(1), tl.cdiv(count, CLUSTERS), SAMPLERS):
        cluster = block * CLUSTERS + tl.arange(0, CLUSTERS)
        inside = cluster < count
        logit = tl.load(logits + row * most + cluster, mask=inside, other=-float("inf"))
        exact, first_window, second_window = in_marks(logit, marks + row * MARKS)
        wanted = (exact | first_window | second_window) & inside
        size = tl.load(sizes + pair * most + cluster, mask=wanted, other=0)
        longest = tl.max(size)
        if longest > 0:
            first = head * arena_members + tl.load(firsts + pair * most + cluster, mask=wanted, other=0)
            begin = tl.load(begins + request * most + cluster, mask=wanted, other=0)
            peak = tl.full((CLUSTERS,), -float("inf"), tl.float32)
            weight = tl.zeros((CLUSTERS,), tl.float32)
            for start in range(0, longest, MEMBERS):
                member = start + tl.arange(0, MEMBERS)
                valid = member[None, :] < size[:, None]
                position = tl.load(members + first[:, None] + member[None, :], mask=valid, other=0)
                slot = tl.load(slot_row + begin[:, None] + position, mask=valid, other=0).to(tl.int64)
                rows = k_pool + (slot * heads + head) * dim
                loaded = valid[:, :, None] & (d < dim)[None, None, :]
                keys = tl.load(rows[:, :, None] + d[None, None, :], mask=loaded, other=0.0)
                true_logit = tl.sum(keys.to(tl.float32) * query[None, None, :], axis=2)
                true_logit = tl.where(valid, true_logit, -float("inf"))
                higher = tl.maximum(peak, tl.max(true_logit, axis=1))
                safe = tl.where(higher == -float("inf"), 0.0, higher)
                weight = weight * tl.exp(peak - safe) + tl.sum(tl.exp(true_logit - safe[:, None]), axis=1)
                peak = higher
            mass = tl.where(weight > 0, peak + tl.log(tl.where(weight > 0, weight, 1.0)), -float("inf"))
            tl.store(log_mass + row * most + cluster, mass, mask=wanted)
