"""Turns the ranks' messages into the public statistics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from tactic.v1.admin_pb2 import WorkerStats
from tactic.v1.types_pb2 import AttentionStats
from tactic.workers.refresh.messages import Gauges, RequestReport


def attention_stats(reports: Sequence[RequestReport]) -> AttentionStats:
    """One account of a request from all ranks, and from all its stays in a slot if it was retracted."""
    if not reports:
        return AttentionStats()
    first = [report for report in reports if report.rank == reports[0].rank]
    stats = AttentionStats(
        decode_steps=sum(r.decode_steps for r in first),
        dense_steps=sum(r.dense_steps for r in first),
        context_length=max(r.context_length for r in first),
        read_share_per_layer=[
            _mean([r.read_share_per_layer[layer] for r in reports], reports)
            for layer in range(len(first[0].read_share_per_layer))
        ],
        index_versions=[version for r in first for version in r.index_versions],
        refreshes=sum(r.refreshes for r in first),
        refreshes_dropped=sum(r.refreshes_dropped for r in first),
        tokens_index_reused=first[0].tokens_index_reused,
        tokens_clustered=sum(r.tokens_clustered for r in first),
    )
    measured = [r for r in reports if r.attention_share_mean is not None]
    if measured:
        stats.attention_share_mean = _mean([r.attention_share_mean or 0.0 for r in measured], measured)
        stats.attention_share_p10 = min(r.attention_share_p10 or 0.0 for r in measured)
    return stats


def worker_stats(gauges: Collection[Gauges], index_bytes: int, kv_tokens: int) -> WorkerStats:
    """The index's state over all ranks; refreshes and tokens are counted on one, as all do the same."""
    one = next(iter(gauges), None)
    if one is None:
        return WorkerStats(index_bytes_total=index_bytes, kv_tokens_total=kv_tokens)
    samples = sum(g.drift.samples for g in gauges)
    dropped = sum((Counter(g.refreshes_dropped) for g in gauges), Counter[str]())
    stats = WorkerStats(
        kv_tokens_used=one.kv_tokens_used,
        kv_tokens_total=kv_tokens,
        index_bytes_used=sum(g.index_bytes_used for g in gauges),
        index_bytes_total=index_bytes,
        segments=one.segments,
        segments_evicted=one.segments_evicted,
        segments_stale=one.segments_stale,
        index_allocation_failures=one.allocation_failures,
        tokens_clustered=one.tokens_clustered,
        tokens_index_reused=one.tokens_index_reused,
        refreshes_requested=one.refreshes_requested,
        refreshes_published=one.refreshes_published,
        refreshes_in_place=one.refreshes_in_place,
        refreshes_dropped=dropped.total(),
        refreshes_dropped_by_reason=dict(dropped),
        drift_samples=one.drift.samples,
    )
    if samples:
        stats.attention_share_before_refresh = sum(g.drift.before for g in gauges) / samples
        stats.attention_share_after_refresh = sum(g.drift.after for g in gauges) / samples
    return stats


def _mean(values: Sequence[float], reports: Sequence[RequestReport]) -> float:
    """Mean over decode steps."""
    weights = [max(1, report.decode_steps) for report in reports]
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
