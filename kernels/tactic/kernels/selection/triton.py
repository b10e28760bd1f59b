# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Selection without sorting: a search for the score above which enough weight lies.

Every pass adds up the weight above eight scores at once and keeps the eighth of the interval that holds the
answer; clusters within 2⁻²⁴ of the score range of each other count as ties.
"""

import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.step import StepPlan
from tactic.kernels.ranking.triton import Scores

_PASSES = 8
_WAYS = 8
_CLUSTERS = 4096


def find_cuts(cuts: Tensor, scores: Scores, plan: StepPlan) -> None:
    """The lowest score that each query head selects.

    Args:
        cuts: `[B, Hq]` fp32, filled; inf where sinks and tail suffice; undefined without clusters.
        scores: of the layer.
        plan: of this step.
    """
    batch, query_heads, most = scores.logits.shape
    readers = scores.attended.shape[2]
    _cut[(batch * query_heads,)](
        scores.logits,
        scores.log_mass,
        scores.attended,
        plan.clusters,
        plan.threshold,
        cuts,
        query_heads,
        most,
        readers,
        READERS=triton.next_power_of_2(readers),
        CLUSTERS=min(_CLUSTERS, triton.next_power_of_2(most)),
        PASSES=_PASSES,
        WAYS=_WAYS,
        num_warps=8,
    )


@triton.jit
def _cut(
    logits,
    log_mass,
    attended,
    clusters,
    threshold,
    cuts,
    query_heads,
    most,
    readers,
    READERS: tl.constexpr,
    CLUSTERS: tl.constexpr,
    PASSES: tl.constexpr,
    WAYS: tl.constexpr,
):
    row = tl.program_id(0)
    request = row // query_heads
    count = tl.load(clusters + request)
    if count == 0:
        return
    logits += row.to(tl.int64) * most
    log_mass += row.to(tl.int64) * most
    reader = tl.arange(0, READERS)
    parts = tl.load(attended + row * readers + reader, mask=reader < readers, other=-float("inf"))

    low, high, peak = float("inf"), -float("inf"), tl.max(parts)
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        logit = tl.load(logits + cluster, mask=cluster < count, other=float("inf"))
        low = tl.minimum(low, tl.min(logit))
        high = tl.maximum(high, tl.max(tl.where(cluster < count, logit, -float("inf"))))
        mass = tl.load(log_mass + cluster, mask=cluster < count, other=-float("inf"))
        peak = tl.maximum(peak, tl.max(mass))

    always = tl.sum(tl.exp(parts - peak))
    ranked = 0.0
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        mass = tl.load(log_mass + cluster, mask=cluster < count, other=-float("inf"))
        ranked += tl.sum(tl.exp(mass - peak))
    needed = tl.load(threshold + request) * (always + ranked) - always

    way = tl.arange(0, WAYS)
    for _ in range(PASSES):
        step = (high - low) / WAYS
        above = tl.zeros((WAYS,), tl.float32)
        for first in range(0, count, CLUSTERS):
            cluster = first + tl.arange(0, CLUSTERS)
            logit = tl.load(logits + cluster, mask=cluster < count, other=-float("inf"))
            mass = tl.load(log_mass + cluster, mask=cluster < count, other=-float("inf"))
            weight = tl.exp(mass - peak)
            taken = logit[None, :] >= (low + step * way)[:, None]
            above += tl.sum(tl.where(taken, weight[None, :], 0.0), axis=1)
        enough = tl.max(tl.where(above >= needed, way, 0))
        low += step * enough
        high = low + step
    tl.store(cuts + row, tl.where(needed <= 0, float("inf"), low))
