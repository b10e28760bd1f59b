import pytest

from tactic.workers.decode.reports import attention_stats, worker_stats
from tactic.workers.refresh.messages import Drift, Gauges, RequestReport

NO_DRIFT = Drift()


def report(
    rank: int = 0, steps: int = 10, read: tuple[float, float] = (0.5, 0.25), **other: object
) -> RequestReport:
    fields = {
        "rank": rank,
        "request_id": "a",
        "decode_steps": steps,
        "dense_steps": 1,
        "context_length": 100,
        "read_share_per_layer": list(read),
        "attention_share_mean": None,
        "attention_share_p10": None,
        "index_versions": [1, 2],
        "refreshes": 1,
        "refreshes_dropped": 2,
        "tokens_index_reused": 64,
        "tokens_clustered": 32,
    }
    return RequestReport(**(fields | other))


def gauges(rank: int, drift: Drift = NO_DRIFT, **dropped: int) -> Gauges:
    return Gauges(rank, 100, 2000, 3, 11, 12, 13, 400, 50, 6, 5, 4, dropped, drift)


def test_no_report_is_no_claim() -> None:
    assert attention_stats([]).ByteSize() == 0


def test_ranks_are_averaged_not_added() -> None:
    stats = attention_stats([report(0, read=(0.5, 0.25)), report(1, read=(0.7, 0.35))])
    assert list(stats.read_share_per_layer) == pytest.approx([0.6, 0.3])
    assert (stats.decode_steps, stats.dense_steps, stats.refreshes, stats.tokens_clustered) == (10, 1, 1, 32)
    assert list(stats.index_versions) == [1, 2]
    assert not stats.HasField("attention_share_mean")


def test_stays_in_a_slot_are_added_and_weighted_by_steps() -> None:
    first = report(steps=30, read=(0.2, 0.4), context_length=90)
    second = report(steps=10, read=(0.6, 0.8), index_versions=[1], tokens_index_reused=80)
    stats = attention_stats([first, second])
    assert list(stats.read_share_per_layer) == pytest.approx([0.3, 0.5])
    assert (stats.decode_steps, stats.context_length) == (40, 100)
    assert (stats.refreshes, stats.refreshes_dropped) == (2, 4)
    assert list(stats.index_versions) == [1, 2, 1]
    # What was found when it first came; the second time it found what it had made itself.
    assert stats.tokens_index_reused == 64


def test_measured_shares() -> None:
    measured = {"attention_share_mean": 0.9, "attention_share_p10": 0.8}
    other = {"attention_share_mean": 0.96, "attention_share_p10": 0.7}
    stats = attention_stats([report(steps=20, **measured), report(steps=40, **other), report(1)])
    assert stats.attention_share_mean == pytest.approx(0.94)
    assert stats.attention_share_p10 == pytest.approx(0.7)


def test_worker_before_its_first_gauges() -> None:
    stats = worker_stats([], index_bytes=10, kv_tokens=20)
    assert (stats.index_bytes_total, stats.kv_tokens_total, stats.segments) == (10, 20, 0)


def test_worker_adds_bytes_and_drops_of_ranks_and_counts_the_rest_once() -> None:
    stats = worker_stats([gauges(0, timeout=1, busy=2), gauges(1, busy=1)], index_bytes=9000, kv_tokens=500)
    assert (stats.index_bytes_used, stats.segments, stats.refreshes_published) == (4000, 3, 5)
    assert stats.refreshes_in_place == 4
    assert dict(stats.refreshes_dropped_by_reason) == {"timeout": 1, "busy": 3}
    assert stats.refreshes_dropped == 4
    assert (stats.segments_evicted, stats.segments_stale, stats.index_allocation_failures) == (11, 12, 13)
    assert not stats.HasField("attention_share_before_refresh")


def test_drift_is_the_mean_over_the_samples_of_all_ranks() -> None:
    ranks = [gauges(0, Drift(2, 1.6, 1.8)), gauges(1, Drift(2, 1.2, 1.9))]
    stats = worker_stats(ranks, index_bytes=1, kv_tokens=1)
    assert stats.drift_samples == 2
    assert stats.attention_share_before_refresh == pytest.approx(0.7)
    assert stats.attention_share_after_refresh == pytest.approx(0.925)
