"""The decode chain's kernels against the definition."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tactic.kernels.decode.runner import DecodeRunner
from tactic.kernels.estimators import estimator_id
from tactic.kernels.index import DecodeOptions
from tactic.kernels.ranking import rank
from tactic.kernels.sparse_decode import sparse_decode

Maker = Callable[..., "Scene"]  # noqa: F821  # the type lives in conftest
MIXED = [([300, 130], 70), ([], 40), ([100], 1), ([65], 0)]
CENTROID = estimator_id("centroid")


def run(scene: "Scene", options: DecodeOptions, device: str) -> tuple[DecodeRunner, Tensor, Tensor]:  # noqa: F821
    """The runner after one layer, its output and its log-sum-exp."""
    there = scene.to(device)
    batch, query_heads, dim = scene.q.shape
    heads = scene.k_pool.shape[1]
    runner = DecodeRunner.create(
        batch=batch,
        query_heads=query_heads,
        kv_heads=heads,
        head_dim=dim,
        context=scene.req_to_token.shape[1],
        segments=scene.table.unit.shape[1],
        cluster_size=scene.arena.cluster_size,
        device=device,
        processors=batch * heads,
    )
    on_device = DecodeOptions(
        options.threshold.to(device),
        options.estimator.to(device),
        options.dense.to(device),
        options.sinks,
        options.min_clustered,
    )
    runner.plan(there.table, on_device, there.request_slots, there.seq_lens)
    result, lse = runner.run(
        there.q,
        there.k_pool,
        there.v_pool,
        there.req_to_token,
        there.arena,
        scale=there.scale,
        sinks=options.sinks,
    )
    return runner, result.out.cpu(), lse.cpu()


@pytest.mark.parametrize("cluster_size", [16, 32])
@pytest.mark.parametrize("sinks", [0, 5])
@pytest.mark.parametrize("threshold", [0.5, 0.9])
def test_the_chain_reads_what_the_definition_reads(
    make_scene: Maker, device: str, threshold: float, sinks: int, cluster_size: int
) -> None:
    scene = make_scene(MIXED, cluster_size=cluster_size)
    options = scene.options(threshold=threshold, estimator=CENTROID, sinks=sinks)
    expected = scene.decode(options)
    runner, out, _ = run(scene, options, device)
    assert torch.equal(runner.reads.lengths.cpu(), expected.read)
    assert torch.equal(runner.reads.selected.cpu(), expected.selected)
    torch.testing.assert_close(out, expected.out, rtol=1e-4, atol=1e-5)
    bounds = runner.indptr.tolist()
    assert bounds[-1] == expected.read.sum()
    assert (expected.read[0] < 500).all(), "the case must be sparse"
    for i, (begin, end) in enumerate(pairwise(bounds)):
        rows = runner.indices[begin:end].cpu()
        assert len(rows.unique()) == len(rows)
        assert (rows % 2 == i % 2).all()


def test_scores_are_those_of_the_ranking(make_scene: Maker, device: str) -> None:
    scene = make_scene([([300], 10)])
    options = scene.options(threshold=0.5, sinks=20)
    runner, _, _ = run(scene, options, device)
    index = scene.index(0, 20)
    ranking = rank(scene.q[0] * scene.scale, index)
    count = index.sizes.shape[1]
    logits = runner.scores.logits[0, :, :count].cpu()
    torch.testing.assert_close(logits.sort(-1, descending=True).values, ranking.scores, rtol=1e-4, atol=1e-5)
    assert torch.equal(runner.scores.sizes[0, :, :count].cpu().long(), index.sizes)


@pytest.mark.parametrize("how", ["threshold", "dense"])
def test_reading_everything_equals_dense(make_scene: Maker, device: str, how: str) -> None:
    scene = make_scene(MIXED)
    options = scene.options(threshold=1.0 if how == "threshold" else 0.5, dense=how == "dense")
    runner, out, lse = run(scene, options, device)
    expected, expected_lse = scene.dense()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-5)
    assert (runner.reads.lengths.cpu() == scene.seq_lens[:, None]).all()


def test_a_batch_mixes_options(make_scene: Maker, device: str) -> None:
    scene = make_scene([([300], 30)] * 3, dim=24)
    options = scene.options(threshold=0.9, estimator=CENTROID)
    options.dense[scene.request_slots[1]] = True
    options.threshold[scene.request_slots[2]] = 0.4
    expected = scene.decode(options)
    runner, out, _ = run(scene, options, device)
    assert torch.equal(runner.reads.lengths.cpu(), expected.read)
    torch.testing.assert_close(out, expected.out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [1, 5, 8])
def test_any_group_size(make_scene: Maker, device: str, group: int) -> None:
    scene = make_scene([([200], 10)], group=group, dtype=torch.float16)
    options = scene.options(threshold=0.8, estimator=CENTROID)
    expected = scene.decode(options)
    _, out, _ = run(scene, options, device)
    torch.testing.assert_close(out, expected.out, rtol=1e-2, atol=1e-2)


def test_the_lists_are_attended_as_defined(make_scene: Maker, device: str) -> None:
    scene = make_scene(MIXED)
    options = scene.options(threshold=0.6, estimator=CENTROID)
    runner, out, lse = run(scene, options, device)
    expected, expected_lse = sparse_decode(
        scene.q, scene.k_pool, scene.v_pool, runner.indices.cpu(), runner.indptr.cpu(), scene.scale
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-5)
