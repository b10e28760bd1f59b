# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Scores of all clusters, and the weight of what is read anyway, in one launch."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.step import StepPlan

_CLUSTERS = 64
_TOKENS = 64


@dataclass(frozen=True)
class Scores:
    """What a layer knows of its clusters; entries beyond a request's clusters are undefined.

    Attributes:
        logits: `[B, Hq, K_max]` fp32; of the centroids.
        log_mass: `[B, Hq, K_max]` fp32; log of the estimated weight (`estimators.centroid`).
        sizes: `[B, H, K_max]` int32; members, sinks left out.
        firsts: `[B, H, K_max]` int32; first of them, in its head's row of the arena's members.
        attended: `[B, Hq, readers]` fp32; log of the weight of sinks and tail, in parts to be added.
    """

    logits: Tensor
    log_mass: Tensor
    sizes: Tensor
    firsts: Tensor
    attended: Tensor

    @classmethod
    def create(
        cls,
        *,
        batch: int,
        query_heads: int,
        kv_heads: int,
        clusters: int,
        readers: int,
        device: torch.device | str,
    ) -> "Scores":
        """Room for `batch` requests of at most `clusters` clusters."""

        def fp32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=device)

        def int32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        return cls(
            logits=fp32(batch, query_heads, clusters),
            log_mass=fp32(batch, query_heads, clusters),
            sizes=int32(batch, kv_heads, clusters),
            firsts=int32(batch, kv_heads, clusters),
            attended=fp32(batch, query_heads, readers),
        )


def score(
    scores: Scores,
    plan: StepPlan,
    arena: LayerArena,
    q: Tensor,
    k_pool: Tensor,
    req_to_token: Tensor,
    *,
    scale: float,
    sinks: int,
    scorers: int,
) -> None:
    """Fills `scores` for a batch.

    Args:
        scores: filled.
        plan: of this step.
        arena: this layer's index.
        q: `[B, Hq, d]`, contiguous.
        k_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` int32.
        scale: of the logits.
        sinks: positions that are always attended.
        scorers: programs that share a head's clusters.
    """
    batch, query_heads, dim = q.shape
    heads = k_pool.shape[1]
    readers = scores.attended.shape[2]
    _score[(batch * heads, scorers + readers)](
        q,
        arena.centroids,
        arena.spread,
        arena.sizes,
        arena.starts,
        arena.members,
        k_pool,
        req_to_token,
        plan.slots,
        plan.seq_lens,
        plan.clusters,
        plan.clustered,
        plan.rows,
        plan.bases,
        plan.begins,
        scores.logits,
        scores.log_mass,
        scores.sizes,
        scores.firsts,
        scores.attended,
        scale,
        heads,
        dim,
        plan.rows.shape[1],
        arena.spread.shape[1],
        arena.members.shape[1],
        req_to_token.stride(0),
        SINKS=sinks,
        GROUP=query_heads // heads,
        ROWS=max(16, triton.next_power_of_2(query_heads // heads)),
        D=max(16, triton.next_power_of_2(dim)),
        CLUSTERS=_CLUSTERS,
        TOKENS=_TOKENS,
        SCORERS=scorers,
        READERS=readers,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
    )


@triton.jit
def load_group(q, pair, dim, GROUP: tl.constexpr, ROWS: tl.constexpr, D: tl.constexpr):
    """Queries [ROWS, D] of a (request, KV head) pair, zero beyond its group."""
    member = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    at = (pair * GROUP + member)[:, None] * dim + d[None, :]
    return tl.load(q + at, mask=(member < GROUP)[:, None] & (d < dim)[None, :], other=0.0)


@triton.jit
def _score(
    q,
    centroids,
    spread,
    arena_sizes,
    arena_starts,
    members,
    k_pool,
    req_to_token,
    slots,
    seq_lens,
    clusters,
    clustered,
    rows,
    bases,
    begins,
    logits,
    log_mass,
    sizes,
    firsts,
    attended,
    scale,
    heads,
    dim,
    most,
    arena_clusters,
    arena_members,
    context,
    SINKS: tl.constexpr,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    D: tl.constexpr,
    CLUSTERS: tl.constexpr,
    TOKENS: tl.constexpr,
    SCORERS: tl.constexpr,
    READERS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pair = tl.program_id(0)
    part = tl.program_id(1)
    request = pair // heads
    head = (pair % heads).to(tl.int64)
    count = tl.load(clusters + request)
    if count == 0:
        return
    query = load_group(q, pair, dim, GROUP, ROWS, D)
    member = tl.arange(0, ROWS)
    d = tl.arange(0, D)
    if part < SCORERS:
        wide = query.to(tl.float32) * scale
        half_variance = tl.sum(wide * wide, axis=1) / (2 * dim)
        for block in range(part, tl.cdiv(count, CLUSTERS), SCORERS):
            cluster = block * CLUSTERS + tl.arange(0, CLUSTERS)
            inside = cluster < count
            row = head * arena_clusters + tl.load(rows + request * most + cluster, mask=inside, other=0)
            at = row[:, None] * dim + d[None, :]
            centroid = tl.load(centroids + at, mask=inside[:, None] & (d < dim)[None, :], other=0.0)
            logit = tl.dot(query, tl.trans(centroid), input_precision=PRECISION) * scale

            size = tl.load(arena_sizes + row, mask=inside, other=0)
            first = tl.load(bases + request * most + cluster, mask=inside, other=0)
            first += tl.load(arena_starts + row, mask=inside, other=0)
            begin = tl.load(begins + request * most + cluster, mask=inside, other=SINKS)
            if tl.min(begin) < SINKS:  # sinks are the first members of their clusters
                leading = tl.zeros((CLUSTERS,), tl.int32)
                for i in range(SINKS):
                    candidate = inside & (begin < SINKS) & (i < size)
                    position = tl.load(members + head * arena_members + first + i, mask=candidate, other=0)
                    leading += (candidate & (begin + position.to(tl.int32) < SINKS)).to(tl.int32)
                first += leading
                size -= leading
            tl.store(sizes + pair * most + cluster, size, mask=inside)
            tl.store(firsts + pair * most + cluster, first, mask=inside)

            mean_square = tl.load(spread + row, mask=inside, other=0.0)
            mass = (
                tl.log(size.to(tl.float32))[None, :] + logit + half_variance[:, None] * mean_square[None, :]
            )
            at = (pair * GROUP + member).to(tl.int64)[:, None] * most + cluster[None, :]
            valid = (member < GROUP)[:, None] & inside[None, :]
            tl.store(logits + at, logit, mask=valid)
            tl.store(log_mass + at, mass, mask=valid)
    else:
        reader = part - SCORERS
        length = tl.load(clustered + request)
        fixed = tl.minimum(length, SINKS)
        total = fixed + tl.load(seq_lens + request) - length
        slot_row = req_to_token + tl.load(slots + request).to(tl.int64) * context
        peak = tl.full((ROWS,), -float("inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        for first in range(reader * TOKENS, total, READERS * TOKENS):
            token = first + tl.arange(0, TOKENS)
            inside = token < total
            position = tl.where(token < fixed, token, token - fixed + length)
            slot = tl.load(slot_row + position, mask=inside, other=0).to(tl.int64)
            at = (slot * heads + head)[:, None] * dim + d[None, :]
            keys = tl.load(k_pool + at, mask=inside[:, None] & (d < dim)[None, :], other=0.0)
            logit = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
            logit = tl.where(inside[None, :], logit, -float("inf"))
            higher = tl.maximum(peak, tl.max(logit, axis=1))
            weight = weight * tl.exp(peak - higher) + tl.sum(tl.exp(logit - higher[:, None]), axis=1)
            peak = higher
        at = (pair * GROUP + member) * READERS + reader
        tl.store(attended + at, peak + tl.log(weight), mask=member < GROUP)
