# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Union over a group, and where each of its clusters goes in the KV head's list."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.step import StepPlan
from tactic.kernels.ranking.triton import Scores

_CLUSTERS = 1024


@dataclass(frozen=True)
class Reads:
    """What each KV head reads of a batch.

    Attributes:
        offsets: `[B, H, K_max]` int32; place of the members in the list, after the sinks; -1 if not read.
        lengths: `[B, H]` int32; positions read.
        selected: `[B, Hq]` int32; positions that each query head asked for.
    """

    offsets: Tensor
    lengths: Tensor
    selected: Tensor

    @classmethod
    def create(
        cls, *, batch: int, query_heads: int, kv_heads: int, clusters: int, device: torch.device | str
    ) -> "Reads":
        """Room for `batch` requests of at most `clusters` clusters."""
        shapes = (batch, kv_heads, clusters), (batch, kv_heads), (batch, query_heads)
        return cls(*(torch.zeros(shape, dtype=torch.int32, device=device) for shape in shapes))


def unite_cuts(reads: Reads, cuts: Tensor, scores: Scores, plan: StepPlan, *, sinks: int) -> None:
    """Fills `reads` from the cuts `[B, Hq]` of the query heads."""
    batch, query_heads, most = scores.logits.shape
    heads = reads.lengths.shape[1]
    group = query_heads // heads
    _unite[(batch * heads,)](
        scores.logits,
        scores.sizes,
        cuts,
        plan.clusters,
        plan.clustered,
        plan.seq_lens,
        reads.offsets,
        reads.lengths,
        reads.selected,
        heads,
        most,
        SINKS=sinks,
        GROUP=group,
        ROWS=triton.next_power_of_2(group),
        CLUSTERS=min(_CLUSTERS, triton.next_power_of_2(most)),
        num_warps=8,
    )


@triton.jit
def _unite(
    logits,
    sizes,
    cuts,
    clusters,
    clustered,
    seq_lens,
    offsets,
    lengths,
    selected,
    heads,
    most,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    CLUSTERS: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    request = pair // heads
    count = tl.load(clusters + request)
    length = tl.load(clustered + request)
    always = tl.minimum(length, SINKS) + tl.load(seq_lens + request) - length
    member = tl.arange(0, ROWS)
    # A head's cut is undefined where there are no clusters; the loop does not run then.
    cut = tl.load(cuts + pair * GROUP + member, mask=member < GROUP, other=float("inf"))
    united = 0
    own = tl.zeros((ROWS,), tl.int32)
    for first in range(0, count, CLUSTERS):
        cluster = first + tl.arange(0, CLUSTERS)
        inside = cluster < count
        at = (pair * GROUP + member)[:, None] * most + cluster[None, :]
        valid = (member < GROUP)[:, None] & inside[None, :]
        logit = tl.load(logits + at, mask=valid, other=-float("inf"))
        size = tl.load(sizes + pair * most + cluster, mask=inside, other=0)
        taken = ((logit >= cut[:, None]) & valid).to(tl.int32)
        own += tl.sum(taken * size[None, :], axis=1)
        read = tl.max(taken, axis=0)
        tokens = read * size
        place = united + tl.cumsum(tokens, axis=0) - tokens
        tl.store(offsets + pair * most + cluster, tl.where(read > 0, place, -1), mask=inside)
        united += tl.sum(tokens)
    tl.store(lengths + pair, united + always)
    tl.store(selected + pair * GROUP + member, own + always, mask=member < GROUP)
