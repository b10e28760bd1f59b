import pytest
import torch
from torch import Tensor

from tactic.kernels.decode import decode
from tactic.kernels.estimators import NAMES, estimator_id
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.methods.budgeted import (
    PAGE,
    Quest,
    TopK,
    Window,
    build_pages,
    highest,
)
from tactic.workers.evaluation.methods.plain import Dense, OracleTopP
from tactic.workers.evaluation.methods.registry import BUDGETED, METHODS, make_method
from tactic.workers.evaluation.methods.tactic import Tactic
from tactic.workers.evaluation.statistics import Reads, attend

FOLLOWING = [40, 41, 42, 43, 44, 45]


@pytest.fixture(scope="module")
def step(context: Context) -> Step:
    return context.capture(FOLLOWING)[1]


def run(step: Step, method: Method) -> tuple[Tensor, Reads]:
    return attend(step, method, None)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_dense_when_it_may_read_everything(step: Step, name: str) -> None:
    method = make_method(name, 1.0, budgets=[10**6] * 8)
    dense, _ = run(step, Dense())
    out, reads = run(step, method)
    if name == "oracle":  # weights of zero need not be read
        torch.testing.assert_close(out, dense)
    else:
        assert torch.equal(out, dense)
        assert torch.equal(reads.read, reads.visible)


@pytest.mark.parametrize("name", BUDGETED)
@pytest.mark.parametrize("budget", [64, 333, 1000])
def test_budgets_are_kept_for_every_head_and_query(step: Step, name: str, budget: int) -> None:
    _, reads = run(step, make_method(name, 0.9, budgets=[budget] * 8))
    assert torch.equal(reads.selected, reads.read)
    slack = PAGE // 2 if name == "quest" else 0
    assert (reads.read - budget).abs().max() <= slack


@pytest.mark.parametrize("name", METHODS)
def test_sinks_and_what_was_generated_are_always_read_and_nothing_later(step: Step, name: str) -> None:
    own = make_method(name, 0.5, budgets=[100] * 8).select(step)
    assert not (own & ~step.visible).any()
    if name != "oracle":
        always = step.always(step.layer.keys.shape[0]) & step.visible
        assert own[always.expand_as(own)].all()


@pytest.mark.parametrize("threshold", [0.5, 0.9])
@pytest.mark.parametrize("estimator", NAMES)
def test_tactic_reads_what_the_product_reads(context: Context, threshold: float, estimator: str) -> None:
    settings = DecodeOptions.create(1, threshold=threshold, estimator=estimator_id(estimator))
    method = Tactic(threshold, estimator)
    for step in context.capture(FOLLOWING):
        out, reads = run(step, method)
        index = step.layer.structure(method.index)
        for i in range(step.query.shape[2]):
            length, scale = step.first + i + 1, step.query.shape[3] ** -0.5
            product = decode(
                step.query[:, :, i].flatten(0, 1)[None] / scale,
                step.keys.contiguous(),
                step.values.contiguous(),
                torch.arange(step.keys.shape[0])[None],
                torch.tensor([0]),
                torch.tensor([length]),
                index.table,
                index.arena,
                settings,
                scale=scale,
                measure=True,
            )
            group = step.query.shape[1]
            assert product.selected[0].tolist() == reads.selected[:, i].tolist()
            assert product.read[0].repeat_interleave(group).tolist() == reads.read[:, i].tolist()
            assert product.share is not None
            torch.testing.assert_close(product.share[0], reads.share[:, i])
            torch.testing.assert_close(product.out[0], out[:, :, i].flatten(0, 1), rtol=1e-4, atol=1e-4)


def test_the_oracle_reaches_its_share_with_the_fewest(step: Step) -> None:
    _, reads = attend(step, OracleTopP(0.8), 0.8)
    assert torch.equal(reads.selected, reads.oracle)
    assert (reads.own_share >= 0.8 - 1e-5).all()
    _, tactic = attend(step, Tactic(0.8, "exact"), 0.8)
    assert (tactic.own_share >= 0.8 - 1e-5).all()
    assert (tactic.oracle <= tactic.ideal).all()
    assert (tactic.ideal <= tactic.selected).all()
    assert tactic.selected.sum() < 1.02 * tactic.ideal.sum(), "whole levels are little more"


def test_top_k_reaches_more_than_any_other_of_its_budget(step: Step) -> None:
    budgets = (200,) * 8
    shares = {
        kind: run(step, kind(budgets))[1].share.view(step.query.shape[0], -1).sum(-1)
        for kind in (TopK, Quest, Window)
    }
    assert (shares[TopK] >= shares[Quest] - 1e-4).all()
    assert (shares[TopK] >= shares[Window] - 1e-4).all()


def test_the_window_is_the_latest_positions(step: Step) -> None:
    own = Window((100,) * 8).select(step)[0, 0]
    for i, row in enumerate(own):
        expected = {*range(16), *range(step.first + i + 1 - 84, step.first + i + 1)}
        assert set(row.nonzero().flatten().tolist()) == expected


def test_quest_bounds_every_logit_of_a_page(step: Step) -> None:
    pages = step.layer.structure(build_pages)
    query = step.query[:, 0]
    bound = query.clamp(min=0) @ pages.highest.mT + query.clamp(max=0) @ pages.lowest.mT
    inside = step.logits[:, 0, :, : bound.shape[-1] * PAGE].unflatten(-1, (-1, PAGE)).amax(-1)
    assert (bound >= inside - 1e-4).all()


def test_a_group_reads_the_union_of_its_heads(step: Step) -> None:
    own = OracleTopP(0.6).select(step)
    _, reads = run(step, OracleTopP(0.6))
    assert reads.read[0].tolist() == own[0].any(0).sum(-1).tolist()
    assert (reads.share >= reads.own_share - 1e-6).all()


def test_positional_clusters_are_blocks(step: Step) -> None:
    index = step.layer.structure(BuildIndex(grouping="positional", segment_size=1024))
    labels = index.labels[0]
    assert labels[:16].tolist() == [index.clusters.sizes.shape[1]] * 16
    assert labels[16:].tolist() == [i // 32 for i in range(16, len(labels))]
    keys = step.layer.keys[64:96].float().mean(0)
    torch.testing.assert_close(
        index.clusters.centroids[:, 2], keys, atol=float(keys.abs().max()) / 250, rtol=0
    )


def test_labels_name_the_cluster_of_each_position(step: Step) -> None:
    index = step.layer.structure(BuildIndex(segment_size=512))
    for head in range(index.labels.shape[0]):
        counts = torch.bincount(index.labels[head], minlength=index.clusters.sizes.shape[1] + 1)
        assert counts[:-1].tolist() == index.clusters.sizes[head].tolist()
        assert counts[-1] == 16
    segments = torch.arange(len(index.labels[0])) // 512
    starts = index.clusters.segment_starts[index.labels[0][16:]]
    assert torch.equal(starts, 512 * segments[16:].clamp(max=2))


def test_short_prompts_are_read_densely(step: Step) -> None:
    method = Tactic(0.5, "fit", options=DecodeOptions.create(1, min_clustered=10**6))
    _, reads = run(step, method)
    assert torch.equal(reads.read, reads.visible)
    assert method.ideal(step, 0.5) is None


def test_splitting_a_step_changes_nothing(step: Step) -> None:
    method = Tactic(0.7, "fit")
    out, reads = attend(step, method, 0.7)
    parts = [attend(part, method, 0.7) for part in step.split(1)]
    assert len(parts) == step.query.shape[2]
    torch.testing.assert_close(torch.cat([part for part, _ in parts], 2), out, rtol=1e-4, atol=1e-4)
    joined = Reads.join([figures for _, figures in parts])
    assert torch.equal(joined.selected, reads.selected)
    assert torch.equal(joined.oracle, reads.oracle)


def test_highest_takes_as_many_as_asked_in_each_row() -> None:
    values = torch.tensor([[[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]]])
    taken = highest(values, torch.tensor([1, 2]))
    assert taken.tolist() == [[[True, False, False], [False, True, True]]]
    assert not highest(values, torch.tensor([0, 0])).any()


def test_unknown_methods_are_refused() -> None:
    with pytest.raises(EvaluationError, match="--methods best is unknown, use some of dense, oracle"):
        make_method("best", 0.9)
