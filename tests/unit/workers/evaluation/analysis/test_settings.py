"""Sensitivity and cluster size."""

import pytest

from tactic.kernels.estimators import NAMES, estimator_id
from tactic.kernels.index import CLUSTER_SIZES
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.cluster_size import ClusterSize
from tactic.workers.evaluation.analysis.interval import Interval
from tactic.workers.evaluation.analysis.sensitivity import SINKS, Sensitivity


def mean(cell: object) -> float:
    assert isinstance(cell, Interval)
    return cell.mean


def test_each_setting_is_varied_alone(capture: Capture) -> None:
    question = Sensitivity(0.9, estimator_id("centroid"))
    question.add(capture)
    rows = {(row["setting"], row["value"]): row for row in question.tables()[0].rows}
    usual = [rows["fit: windows at", "10% and 60%"], rows["fit: ranks in a window", "64"]]
    usual.append(rows["fit: exact prefix", "2.0%"])
    assert len({mean(row["tokens"]) for row in usual}) == 1, "the default stands in each group"
    tokens = [mean(rows["centroid: sinks", str(sinks)]["tokens"]) for sinks in SINKS]
    assert min(tokens) >= mean(rows["centroid: sinks", "16"]["oracle"])


def test_every_cluster_size_has_its_quality_and_cost(capture: Capture) -> None:
    question = ClusterSize(0.9, estimator_id("centroid"))
    question.add(capture)
    quality, cost = question.tables()
    assert [(row["cluster size"], row["estimator"]) for row in quality.rows] == [
        (size, name) for size in CLUSTER_SIZES for name in NAMES
    ]
    for row in quality.rows:
        assert mean(row["tokens / oracle"]) >= 1 or mean(row["success"]) < 1
        if row["estimator"] == "exact":
            assert mean(row["success"]) == 1
    assert [row["cluster size"] for row in cost.rows] == list(CLUSTER_SIZES)
    sizes = [mean(row["index MB"]) for row in cost.rows]
    assert sizes == sorted(sizes, reverse=True)
    # Per position and head: 2 bytes of member; for every 16: codes and a factor, spread, start, size.
    shares = [mean(row["index / KV"]) for row in cost.rows]
    assert shares[0] == pytest.approx((2 + (16 + 16) / 16) / (2 * 16 * 4), rel=0.01)
    assert all(mean(row[name]) > 0 for row in cost.rows for name in ("build ms", "decode ms", "dense ms"))
