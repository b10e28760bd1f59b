"""The decode chain in plain torch: the definition, and what serves on CPU."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.decode.result import DecodeResult
from tactic.kernels.dense.naive import attend
from tactic.kernels.estimators import Evidence, make_estimator, position_logits
from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.options import DecodeOptions
from tactic.kernels.index.request import RequestIndex
from tactic.kernels.index.table import SegmentTable
from tactic.kernels.index_map.naive import map_rows, read_mask
from tactic.kernels.ranking.naive import rank
from tactic.kernels.selection.naive import select
from tactic.kernels.sparse_decode.naive import sparse_decode
from tactic.kernels.sparse_decode.trace import reached_share
from tactic.kernels.union.naive import unite


def decode(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    request_slots: Tensor,
    seq_lens: Tensor,
    table: SegmentTable,
    arena: LayerArena,
    options: DecodeOptions,
    *,
    scale: float,
    measure: bool = False,
) -> DecodeResult:
    """Decode attention of one layer for a batch of requests, reading only what their thresholds ask for.

    Requests that are `dense`, have a threshold of 1 or fewer than `min_clustered` clustered positions read
    everything, by the same code as `dense_decode`.

    Args:
        q: `[B, Hq, d]`.
        k_pool: `[slots, H, d]`, contiguous, keys after RoPE; the current token's are there already.
        v_pool: `[slots, H, d]`, contiguous.
        req_to_token: `[R, max_context]` integer, pool slot of each position.
        request_slots: `[B]` integer.
        seq_lens: `[B]` integer, the current token included.
        table: segments of each request slot.
        arena: this layer's index.
        options: of each request slot.
        scale: of the logits, usually 1/√d.
        measure: also compute the true attention share reached; costs a read of all keys.

    Returns:
        Output and what was read.

    Raises:
        ValueError: an index covers more than its request's positions, or an option is out of range.
    """
    batch, query_heads, _ = q.shape
    heads = k_pool.shape[1]
    out = torch.empty_like(q)
    read = seq_lens.to(torch.int32)[:, None].repeat(1, heads)
    selected = seq_lens.to(torch.int32)[:, None].repeat(1, query_heads)
    share = torch.ones(batch, query_heads, dtype=torch.float32) if measure else None

    for i, request in enumerate(_requests(request_slots, seq_lens, table, options)):
        slot_ids = req_to_token[request.slot, : request.length]
        if request.reads_all:
            keys, values = k_pool.index_select(0, slot_ids), v_pool.index_select(0, slot_ids)
            out[i] = attend(q[i], keys, values, scale)[0]
            continue
        query = q[i].float() * scale
        index = RequestIndex.gather(arena, table, request.slot, sinks=options.sinks)
        mask, selected[i] = _choose(query, k_pool, slot_ids, request, index, options)
        rows, counts = map_rows(mask, slot_ids)
        indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        out[i : i + 1], lse = sparse_decode(q[i : i + 1], k_pool, v_pool, rows, indptr, scale)
        read[i] = counts
        if share is not None:
            share[i] = reached_share(query, lse[0], k_pool, slot_ids)
    return DecodeResult(out, read, selected, share)


@dataclass(frozen=True)
class _Request:
    slot: int
    length: int
    threshold: float
    estimator: int
    reads_all: bool


def _requests(
    request_slots: Tensor, seq_lens: Tensor, table: SegmentTable, options: DecodeOptions
) -> Iterator[_Request]:
    """Reads each request's options and decides whether it needs the index."""
    slots = request_slots.long()
    used = torch.arange(table.length.shape[1]) < table.count[slots, None]
    clustered = table.length[slots].where(used, 0).sum(-1)
    chosen = options.threshold[slots], options.estimator[slots], options.dense[slots]
    columns = (column.tolist() for column in (slots, seq_lens, clustered, *chosen))
    for slot, length, covered, threshold, estimator, dense in zip(*columns, strict=True):
        if covered > length:
            raise ValueError(
                f"the index of request slot {slot} covers {covered} positions, the request has {length}"
            )
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold[{slot}]={threshold} is outside (0, 1]")
        reads_all = dense or threshold == 1 or covered < max(options.min_clustered, options.sinks + 1)
        yield _Request(slot, length, threshold, estimator, reads_all)


def _choose(
    query: Tensor,
    k_pool: Tensor,
    slot_ids: Tensor,
    request: _Request,
    index: RequestIndex,
    options: DecodeOptions,
) -> tuple[Tensor, Tensor]:
    """Positions each KV head reads, `[H, n]` bool, and how many each query head selected, `[Hq]` int64."""
    estimator = make_estimator(request.estimator, options)
    ranking = rank(query, index, by_weight=estimator.by_weight)
    always = torch.cat([slot_ids[: index.sinks], slot_ids[index.length :]])
    attended = position_logits(query, k_pool, always).logsumexp(-1)
    evidence = Evidence(ranking, k_pool, slot_ids, attended)
    ranks = estimator.ranks(evidence, request.threshold)
    clusters = select(ranking, ranks)
    sizes = index.sizes.repeat_interleave(ranking.group, 0)
    selected = sizes.mul(clusters).sum(-1) + always.shape[0]
    return read_mask(index, unite(clusters, index.sizes), request.length), selected
