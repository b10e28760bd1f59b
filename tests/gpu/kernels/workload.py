"""Synthetic Llama-3.1-8B-shaped layers whose oracle needs a set number of tokens.

At 128k the oracle needs 900 tokens a query head for P = 0.9, a perfect estimate on our clusters 2.2 times as
many (1.9 in arXiv 2502.12216), and a group reads 1.5 times what a head selects (1.6 on the reference
model).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index import LayerArena, SegmentTable, units_in
from tactic.kernels.kmeans import kmeans_pool

SEGMENT = 8192
_TOPICS = 64  # of a passage of that length
_NOISE = 0.5
QUEUED = 20_000_000
"""Cycles for which the device is kept busy while the host queues what is timed, as in a prefill."""


@dataclass
class Layer:
    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    arena: LayerArena


@dataclass
class Workload:
    layers: list[Layer]
    req_to_token: Tensor
    request_slots: Tensor
    seq_lens: Tensor
    table: SegmentTable
    scale: float
    build_ms: float  # of the last layer: compiled and warm
    oracle_tokens: float
    about: str


def build(
    *,
    context: int,
    batch: int,
    layers: int,
    heads: int = 8,
    group: int = 4,
    dim: int = 128,
    cluster_size: int = 32,
    oracle: int = 900,
    tail: int = 1024,
    structured: bool = True,
    device: str = "cuda",
    seed: int = 0,
) -> Workload:
    """Requests of `context` positions, the last `tail` of them not clustered."""
    torch.manual_seed(seed)
    slots = batch * context
    permuted = torch.randperm(slots, device=device, dtype=torch.int32)
    req_to_token = permuted.view(batch, context)
    lengths = segment_lengths(context - tail)
    table = make_table(batch, lengths, device)

    scale = dim**-0.5
    made: list[Layer] = []
    build_ms = tokens = 0.0
    for _ in range(layers):
        k_pool = torch.empty(slots, heads, dim, dtype=torch.bfloat16, device=device)
        topics = torch.randn(max(1, context // 1024), heads, dim, device=device) * (
            1.0 if structured else 0.0
        )
        for request in range(batch):
            for begin in range(0, context, SEGMENT):
                ids = req_to_token[request, begin : begin + SEGMENT].long()
                # A passage turns to some of the topics, for 16 tokens at a time.
                local = torch.randint(len(topics), (_TOPICS,), device=device)
                topic = local[torch.randint(_TOPICS, (len(ids) // 16 + 1,), device=device)]
                noise = _NOISE * torch.randn(len(ids), heads, dim, device=device)
                keys = topics[topic.repeat_interleave(16)[: len(ids)]] + noise
                k_pool[ids] = keys.to(torch.bfloat16)
        v_pool = torch.randn(slots, heads, dim, device=device, dtype=torch.bfloat16)
        # The heads of a group look for the same topics, each with weights of its own.
        picked = torch.randint(len(topics), (batch, heads, 1, 4), device=device).expand(-1, -1, group, -1)
        shared = torch.randn(batch, heads, 1, 4, device=device).abs()
        mixture = shared * torch.randn(batch, heads, group, 4, device=device).exp()
        head = torch.arange(heads, device=device)[:, None, None]
        q = (mixture[..., None] * topics[picked, head]).sum(3).view(batch, heads * group, dim)
        q = q + 0.5 * torch.randn(batch, heads * group, dim, device=device)
        q, needed = _calibrate(q, k_pool, req_to_token, scale, oracle if structured else context)
        tokens += needed / layers

        arena, build_ms = make_index(table, k_pool, req_to_token, lengths, cluster_size)
        made.append(Layer(q.to(torch.bfloat16), k_pool, v_pool, arena))
    return Workload(
        made,
        req_to_token,
        torch.arange(batch, device=device, dtype=torch.int32),
        torch.full((batch,), context, dtype=torch.int32, device=device),
        table,
        scale,
        build_ms,
        tokens,
        "synthetic, calibrated" if structured else "synthetic, without structure",
    )


def segment_lengths(clustered: int) -> list[int]:
    """Of the segments of so many positions."""
    return [SEGMENT] * (clustered // SEGMENT) + ([clustered % SEGMENT] if clustered % SEGMENT else [])


def make_table(batch: int, lengths: list[int], device: str) -> SegmentTable:
    """Requests of the same segments, one after the other in the arenas."""
    table = SegmentTable.create(slots=batch, segments=len(lengths), device=device)
    unit = 0
    for request in range(batch):
        row = []
        for n in lengths:
            row.append((unit, n))
            unit += units_in(n)
        table.write(request, row)
    return table


def make_index(
    table: SegmentTable, k_pool: Tensor, req_to_token: Tensor, lengths: list[int], cluster_size: int
) -> tuple[LayerArena, float]:
    """One layer's index, and the milliseconds that it took for a request."""
    batch = len(req_to_token)
    arena = LayerArena.create(
        heads=k_pool.shape[1],
        units=batch * sum(units_in(n) for n in lengths),
        head_dim=k_pool.shape[2],
        cluster_size=cluster_size,
        device=k_pool.device,
    )
    units = table.unit.tolist()  # here, as it waits for the device
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(QUEUED)
    begin.record()
    for request in range(batch):
        _index(arena, units[request], k_pool, req_to_token[request], lengths, cluster_size)
    end.record()
    end.synchronize()
    return arena, begin.elapsed_time(end) / batch


def logits_of(q: Tensor, k_pool: Tensor, slot_ids: Tensor, scale: float) -> Tensor:
    """Logits `[Hq, n]` fp32 of one request's queries `[Hq, d]`, in bounded memory."""
    heads = k_pool.shape[1]
    grouped = (q.float() * scale).view(heads, -1, q.shape[1])
    parts = [
        torch.bmm(grouped, k_pool[ids.long()].float().permute(1, 2, 0)) for ids in slot_ids.split(1 << 16)
    ]
    return torch.cat(parts, -1).view(q.shape[0], -1)


def _calibrate(
    q: Tensor, k_pool: Tensor, req_to_token: Tensor, scale: float, oracle: int
) -> tuple[Tensor, float]:
    """Scales each head's query so that 90 % of its weight lies on about `oracle` tokens."""
    tuned = torch.empty_like(q)
    needed = torch.zeros(q.shape[:2], device=q.device)
    for request in range(q.shape[0]):
        logits = logits_of(q[request], k_pool, req_to_token[request], scale).sort(-1, descending=True).values
        low, high = torch.zeros(q.shape[1], device=q.device), torch.full((q.shape[1],), 40.0, device=q.device)
        for _ in range(20):
            middle = (low + high) / 2
            count = ((logits * middle[:, None]).softmax(-1).cumsum(-1) < 0.9).sum(-1) + 1
            low, high = torch.where(count > oracle, middle, low), torch.where(count > oracle, high, middle)
        tuned[request] = q[request] * high[:, None]
        needed[request] = count.float()
    return tuned, float(needed.mean())


def _index(
    arena: LayerArena,
    units: list[int],
    k_pool: Tensor,
    slot_ids: Tensor,
    lengths: list[int],
    cluster_size: int,
) -> None:
    """Clusters one request, its segments to `units`: the full ones in one call, then the rest."""
    full = sum(n == SEGMENT for n in lengths)
    if full:
        ids = slot_ids[: full * SEGMENT].view(full, SEGMENT)
        for i, clusters in enumerate(kmeans_pool(k_pool, ids, cluster_size).split(full)):
            arena.write(units[i], clusters)
    if full < len(lengths):
        begin = full * SEGMENT
        rest = kmeans_pool(k_pool, slot_ids[None, begin : begin + lengths[-1]], cluster_size)
        arena.write(units[full], rest)
