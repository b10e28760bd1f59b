from collections.abc import Callable

import pytest
import torch

from tactic.kernels.estimators import ESTIMATORS, Estimator, Exact
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.selection import IndexedStep, Outcome, quantile
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.methods.tactic import Tactic
from tactic.workers.evaluation.statistics import attend


def indexed(step: Step, threshold: float = 0.9) -> IndexedStep:
    return IndexedStep(step, step.layer.structure(BuildIndex()).clusters, threshold)


def test_weights_are_shared_out_between_clusters_and_what_is_always_read(capture: Capture) -> None:
    seen = indexed(capture.layers[0])
    torch.testing.assert_close(seen.mass.sum(-1) + seen.always_share, torch.ones(24))
    assert torch.equal(seen.always, torch.tensor([17, 18, 19, 20]).repeat(6))
    assert (seen.partition.sizes.sum(-1) == 2048 - 16).all()


def test_reading_everything_holds_everything(capture: Capture) -> None:
    seen = indexed(capture.layers[0])
    outcome = seen.outcome(torch.ones_like(seen.mass, dtype=torch.bool))
    assert torch.equal(outcome.tokens, torch.tensor([2049, 2050, 2051, 2052]).repeat(6))
    torch.testing.assert_close(outcome.share, torch.ones(24))


def test_a_perfect_estimate_always_succeeds_and_reads_no_less_than_the_oracle(capture: Capture) -> None:
    seen = indexed(capture.layers[1])
    outcome = seen.outcome(seen.choose(Exact()))
    assert outcome.success.all()
    assert (outcome.tokens >= outcome.oracle).all()


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_figures_are_those_of_the_method(capture: Capture, kind: type[Estimator]) -> None:
    """The sub-commands here and `accuracy` measure the same thing in two ways."""
    step = capture.layers[0]
    seen = indexed(step)
    outcome = seen.outcome(seen.choose(kind.from_options(DecodeOptions.create(1))))
    _, reads = attend(step, Tactic(0.9, kind.name), 0.9)
    assert torch.equal(outcome.tokens, reads.selected.flatten())
    assert torch.equal(outcome.oracle, reads.oracle.flatten())
    torch.testing.assert_close(outcome.share, reads.own_share.flatten(), rtol=1e-5, atol=1e-5)


def test_a_summary_counts_cases() -> None:
    two = Outcome(0.9, torch.tensor([10, 30]), torch.tensor([0.9, 0.8]), torch.tensor([10, 10]))
    summary = Outcome.cat([two, two]).summary()
    assert summary["tokens / oracle"] == (20, 10)
    assert summary["success"] == 0.5
    assert summary["share"] == pytest.approx(0.85)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.05, 5.0), (0.5, 50.0), (1.0, 100.0)])
def test_quantiles(share: float, expected: float) -> None:
    assert (
        quantile(torch.randperm(101, generator=torch.Generator().manual_seed(0)).float(), share) == expected
    )


def test_queries_do_not_see_later_keys(make_step: Callable[..., Step]) -> None:
    keys = torch.zeros(1030, 1, 8)
    keys[-1] = 100.0  # only the last query may look at it
    seen = indexed(make_step(keys, torch.ones(1, 1, 6, 8)))
    assert (seen.weights[:-1, -1] == 0).all()
    assert seen.weights[-1, -1] == pytest.approx(1)
