from collections.abc import Callable, Sequence

import pytest
import torch

from tactic.kernels.estimators import Exact, estimator_id
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.gqa import UNION, GroupedQueries
from tactic.workers.evaluation.analysis.groups import cut, cut_for_all, estimated_shares, jaccard
from tactic.workers.evaluation.analysis.interval import Interval
from tactic.workers.evaluation.analysis.result import Row
from tactic.workers.evaluation.analysis.selection import IndexedStep
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.layer import Step

TOPICS, GROUP = 8, 4


def topic_capture(make_step: Callable[..., Step], topics: Sequence[int], strength: float = 40.0) -> Capture:
    """Keys near 8 orthogonal topics, 256 of each; each head of the group looks for one topic."""
    directions = torch.eye(TOPICS)
    keys = directions.repeat_interleave(256, 0)[:, None]
    keys = keys + 1e-3 * torch.randn(keys.shape, generator=torch.Generator().manual_seed(0))
    keys = torch.cat([torch.zeros(16, 1, TOPICS), keys, torch.zeros(1, 1, TOPICS)])  # sinks, the query's own
    query = strength * directions[list(topics)].view(1, len(topics), 1, TOPICS)
    return Capture("topics", 2048, 0, (make_step(keys, query),))


def ask(capture: Capture, threshold: float = 0.9) -> tuple[Sequence[Row], Sequence[Row]]:
    question = GroupedQueries(threshold, estimator_id("exact"))
    question.add(capture)
    divergence, rules = question.tables()
    return divergence.rows, rules.rows


def mean(cell: object) -> float:
    assert isinstance(cell, Interval)
    return cell.mean


def test_heads_that_agree_have_jaccard_1_and_inflation_1(make_step: Callable[..., Step]) -> None:
    divergence, rules = ask(topic_capture(make_step, [5] * GROUP))
    assert mean(divergence[0]["jaccard"]) == 1
    assert mean(divergence[0]["inflation"]) == 1
    assert len({mean(row["read"]) for row in rules}) == 1, "every rule reads the same"


def test_disjoint_heads_inflate_by_the_size_of_the_group(make_step: Callable[..., Step]) -> None:
    divergence, rules = ask(topic_capture(make_step, [0, 2, 5, 7]))
    assert mean(divergence[0]["jaccard"]) == 0
    assert mean(divergence[0]["inflation"]) == GROUP
    read = {row["rule"]: mean(row["read"]) for row in rules}
    assert read["sum, every head reaches P"] == pytest.approx(read[UNION], rel=0.05), (
        "there is nothing to share"
    )
    success = {row["rule"]: mean(row["success"]) for row in rules}
    assert success[UNION] == success["max, every head reaches P"] == 1


def test_uniform_attention_reads_nearly_everything(make_step: Callable[..., Step]) -> None:
    _, rules = ask(topic_capture(make_step, [1, 2, 3, 4], strength=0.0))
    union, *others = rules
    assert mean(union["read share"]) == 1  # all clusters are on one level
    for row in others:
        assert mean(row["read share"]) == pytest.approx(0.9, abs=0.03)
    for row in rules:
        assert mean(row["reads over 50%"]) == 1


def test_the_first_row_is_the_mean_of_the_layers(capture: Capture) -> None:
    divergence, _ = ask(capture)
    assert [row["layer"] for row in divergence] == ["all", "0", "1"]
    layers = [mean(row["jaccard"]) for row in divergence[1:]]
    assert mean(divergence[0]["jaccard"]) == pytest.approx(sum(layers) / 2)


def test_jaccard_counts_positions() -> None:
    chosen = torch.tensor([[[[1, 1, 0]], [[0, 1, 1]]]], dtype=torch.bool)
    assert jaccard(chosen, torch.tensor([[[10, 30, 60]]])).item() == pytest.approx(0.3)
    assert jaccard(torch.zeros_like(chosen), torch.tensor([[[10, 30, 60]]])).item() == 1
    assert jaccard(chosen[:, :1], torch.tensor([[[10, 30, 60]]])).item() == 1


def test_a_cut_takes_the_fewest_clusters_in_order() -> None:
    score, mass = torch.tensor([[[1.0, 3.0, 2.0]]]), torch.tensor([[[0.3, 0.4, 0.2]]])
    attended = torch.tensor([[0.1]])
    assert cut(score, mass, attended, torch.tensor([[0.49]])).tolist() == [[[False, True, False]]]
    assert cut(score, mass, attended, torch.tensor([[0.6]])).tolist() == [[[False, True, True]]]
    assert cut(score, mass, attended, torch.tensor([[0.1]])).tolist() == [[[False, False, False]]]
    other = torch.stack([mass, mass.flip(-1)], 1)
    both = cut_for_all(score, other, attended[:, None].expand(1, 2, 1), torch.full((1, 2, 1), 0.75))
    assert both.tolist() == [[[True, True, True]]]


def test_a_perfect_estimate_gives_the_true_shares(capture: Capture) -> None:
    step = capture.layers[0]
    seen = IndexedStep(step, step.layer.structure(BuildIndex()).clusters, 0.9)
    mass, attended = estimated_shares(seen.evidence(Exact()), Exact())
    torch.testing.assert_close(mass, seen.mass, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(attended, seen.always_share)
