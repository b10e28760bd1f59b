"""The decode chain's kernels against the definition."""

import dataclasses
from collections.abc import Callable
from math import ceil
from types import ModuleType

import pytest
import torch
from read_rows import read_rows
from torch import Tensor

from tactic.kernels.decode import runner as decode_runner
from tactic.kernels.decode.runner import DecodeRunner
from tactic.kernels.estimators import Evidence, estimator_id, position_logits
from tactic.kernels.estimators.fit import curve_mass, fit_curve
from tactic.kernels.index import DecodeOptions
from tactic.kernels.index_map import triton as listing
from tactic.kernels.ranking import rank
from tactic.kernels.ranking import triton as scoring
from tactic.kernels.sparse_decode import sparse_decode
from tactic.kernels.sparse_decode import triton as sparse

Maker = Callable[..., "Scene"]  # noqa: F821  # the type lives in conftest
MIXED = [([300, 130], 70), ([], 40), ([65], 0)]
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
    arguments = there.q, there.k_pool, there.v_pool, there.req_to_token, there.arena
    result = runner.run(*arguments, scale=there.scale, sinks=options.sinks)
    return runner, result.out.cpu(), runner.trace.lse.cpu()


def listed(scene: "Scene", runner: DecodeRunner, sinks: int) -> list[Tensor]:  # noqa: F821
    return read_rows(runner, scene.req_to_token, scene.request_slots, scene.seq_lens, sinks)


@pytest.mark.parametrize(("threshold", "sinks", "cluster_size"), [(0.5, 0, 32), (0.9, 5, 16), (0.7, 20, 32)])
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
    assert (expected.read[0] < 500).all(), "the case must be sparse"
    for i, rows in enumerate(listed(scene, runner, sinks)):
        assert len(rows) == expected.read.flatten()[i]
        assert len(rows.unique()) == len(rows)
        assert (rows % 2 == i % 2).all()


def test_the_guarded_estimate_selects_what_its_definition_does(make_scene: Maker, device: str) -> None:
    scene = make_scene([([1500], 30), ([700, 900], 1)], cluster_size=16)
    options = scene.options(threshold=0.7, estimator=estimator_id("guarded"))
    expected = scene.decode(options)
    runner, out, _ = run(scene, options, device)
    more = runner.reads.selected.cpu() - expected.selected
    assert (more >= 0).all()
    assert (more > 0).sum() <= 1, "ties are few"
    assert (expected.selected[0] < 1400).all(), "the case must be sparse"
    assert (expected.selected >= 256).all()
    torch.testing.assert_close(out, expected.out, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("module", "constant", "value"),
    [
        (listing, "_RUN", 64),
        (listing, "_PICKED", 2),
        (listing, "_TOKENS", 16),
        (sparse, "_TOKENS", 16),
        (scoring, "_CROWDED", 1),
        (decode_runner, "_LEAST_SPLITS", 3),
        (decode_runner, "_SCORE_WAVES", 0),
    ],
)
def test_cuts_of_the_work_do_not_change_the_result(
    make_scene: Maker,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    constant: str,
    value: int,
) -> None:
    """More clusters in a program, sought and listed piece by piece, counts in copies, uneven parts."""
    scene = make_scene([([700, 900], 30), ([1200], 1)], cluster_size=16, seed=3)
    options = scene.options(threshold=0.7, estimator=estimator_id("guarded"))
    expected, expected_out, expected_lse = run(scene, options, device)
    monkeypatch.setattr(module, constant, value)
    runner, out, lse = run(scene, options, device)
    assert torch.equal(runner.reads.selected, expected.reads.selected)
    assert torch.equal(runner.reads.lengths, expected.reads.lengths)
    torch.testing.assert_close(out, expected_out, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-5)
    assert (runner.reads.lengths[0] < 1500).all(), "the case must be sparse"


def test_a_head_that_needs_nearly_everything_reads_it(make_scene: Maker, device: str) -> None:
    scene = make_scene([([300, 130], 70)])
    scene = dataclasses.replace(scene, q=scene.q.clone())
    scene.q[:, 0] *= 0.01  # even weights
    options = scene.options(threshold=0.8, estimator=CENTROID)
    expected = scene.decode(options)
    runner, out, _ = run(scene, options, device)
    assert expected.read[0, 0] == 500
    assert expected.read[0, 1] < 500
    assert torch.equal(runner.reads.lengths.cpu(), expected.read)
    torch.testing.assert_close(out, expected.out, rtol=1e-4, atol=1e-5)
    for rows, count in zip(listed(scene, runner, 16), expected.read.flatten(), strict=True):
        assert len(rows.unique()) == count


@pytest.mark.parametrize(("estimator", "by_weight"), [("fit", False), ("guarded", True)])
def test_levels_are_those_of_the_ranking(
    make_scene: Maker, device: str, estimator: str, by_weight: bool
) -> None:
    scene = make_scene([([300], 10)])
    options = scene.options(threshold=0.5, sinks=20, estimator=estimator_id(estimator))
    runner, _, _ = run(scene, options, device)
    index = scene.index(0, 20)
    ranking = rank(scene.q[0] * scene.scale, index, by_weight=by_weight)
    count = index.sizes.shape[1]
    levels = runner.scores.levels[0, :, :count].mT.flatten(0, 1).cpu().long()
    filled = index.sizes.repeat_interleave(ranking.group, 0) > 0
    expected = torch.zeros_like(levels).scatter_(1, ranking.order, ranking.levels)
    apart = (levels - expected)[filled].abs()
    assert apart.max() <= 1
    # The first cluster lies on the edge between two, at no distance from itself.
    apart = (levels - expected)[:, 1:][filled[:, 1:]]
    assert (apart != 0).float().mean() < 0.05, "scores at the edge of a level are few"
    if not by_weight:
        keys = runner.scores.keys[0, :, :count].cpu()
        scores = torch.zeros_like(keys).scatter_(1, ranking.order, ranking.scores)
        torch.testing.assert_close(keys[filled], scores[filled], rtol=1e-4, atol=1e-5)
        assert not filled.all(), "some sinks are alone in their clusters"
    assert (runner.scores.tally == 0).all(), "cleared for the next layer"
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


def test_a_padded_batch_does_not_use_another_requests_index(make_scene: Maker, device: str) -> None:
    """Graphs are padded with some slot and a length of 1 or 0."""
    scene = make_scene([([300], 30)])
    options = scene.options(threshold=0.6, estimator=CENTROID)
    expected = scene.decode(options)
    padded = dataclasses.replace(
        scene,
        q=scene.q.repeat(3, 1, 1),
        request_slots=scene.request_slots.repeat(3),
        seq_lens=torch.tensor([0, 330, 1], dtype=torch.int64),
    )
    runner, out, _ = run(padded, options, device)
    assert runner.reads.lengths.tolist() == [[0, 0], expected.read[0].tolist(), [1, 1]]
    torch.testing.assert_close(out[1], expected.out[0], rtol=1e-4, atol=1e-5)
    assert (out[0] == 0).all()


def test_a_runner_serves_smaller_batches_in_its_memory(make_scene: Maker, device: str) -> None:
    scene = make_scene([([300], 30), ([100], 2)])
    options = scene.options(threshold=0.6, estimator=CENTROID)
    expected = scene.decode(options)
    large, _, _ = run(scene, options, device)
    runner = large.shrink(1)
    there = scene.to(device)
    device_options = DecodeOptions.create(
        len(scene.table.count), threshold=0.6, estimator=CENTROID, device=device
    )
    device_options = dataclasses.replace(device_options, min_clustered=64)
    runner.plan(there.table, device_options, there.request_slots[1:], there.seq_lens[1:])
    pools = there.k_pool, there.v_pool, there.req_to_token, there.arena
    result = runner.run(there.q[1:], *pools, scale=there.scale, sinks=16)
    torch.testing.assert_close(result.out.cpu(), expected.out[1:], rtol=1e-4, atol=1e-5)
    assert runner.reads.slots.data_ptr() == large.reads.slots.data_ptr()


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


def test_the_trace_tells_the_share_that_was_reached(make_scene: Maker, device: str) -> None:
    scene = make_scene(MIXED)
    options = scene.options(threshold=0.6, estimator=CENTROID)
    expected = scene.decode(options, measure=True).share
    runner, _, _ = run(scene, options, device)
    there = scene.to(device)
    for i in range(len(MIXED)):
        share = runner.trace.share(i, there.k_pool, there.slot_ids(i), scene.scale)
        torch.testing.assert_close(share.cpu(), expected[i], rtol=1e-4, atol=1e-5)
    assert expected.min() < 0.95, "the case must be sparse"


def test_the_lists_are_attended_as_defined(make_scene: Maker, device: str) -> None:
    scene = make_scene(MIXED)
    options = scene.options(threshold=0.6, estimator=CENTROID)
    runner, out, lse = run(scene, options, device)
    rows = listed(scene, runner, options.sinks)
    indptr = torch.tensor([0, *map(len, rows)]).cumsum(0)
    expected, expected_lse = sparse_decode(
        scene.q, scene.k_pool, scene.v_pool, torch.cat(rows), indptr, scene.scale
    )
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-5)


def fit_in_whole_clusters(scene: "Scene", i: int, options: DecodeOptions) -> Tensor:  # noqa: F821
    """Positions `[Hq]` that `fit` selects of request i when it samples whole clusters, as the kernels do."""
    index = scene.index(i, options.sinks)
    ranking = rank(scene.q[i] * scene.scale, index)
    slot_ids = scene.slot_ids(i)
    always = torch.cat([slot_ids[: index.sinks], slot_ids[index.length :]])
    attended = position_logits(ranking.query, scene.k_pool, always).logsumexp(-1).exp()
    weights = Evidence(ranking, scene.k_pool, slot_ids, attended).logits(torch.arange(index.ranks)).exp()
    n, window = index.ranks, options.window
    exact = ceil(options.exact_fraction * n)
    begins = [min(max(exact, round(n * at) - window // 2), n - window) for at in options.windows]
    selected = []
    for head in range(weights.shape[0]):
        ends = ranking.ends[head]

        def whole(begin: int, end: int, ends: Tensor = ends) -> tuple[int, int]:
            first = int((ends <= begin).sum())
            return (int(ends[first - 1]) if first else 0), int(ends[ends >= end][0])

        top = whole(0, exact)[1]
        spans = [whole(begin, begin + window) for begin in begins]
        m1, m2 = (weights[head, a:b].mean().view(1, 1) for a, b in spans)
        a, b = fit_curve(m1, m2, *((first + 1 + last) / 2 for first, last in spans))
        known = torch.nn.functional.pad(weights[head].cumsum(0), (1, 0))[ends.clamp(max=top)]
        mass = attended[head] + known + curve_mass(a, b, top, ends.clamp(min=top)[None])[0]
        enough = mass >= options.threshold[scene.request_slots[i]] * mass[-1]
        # With the last cluster, all of its level.
        chosen = ranking.levels[head] >= ranking.levels[head][enough][0]
        selected.append(0 if attended[head] >= 0.8 * mass[-1] else int(ends[chosen][-1]))
    return torch.tensor(selected, dtype=torch.int32) + len(always)


def test_fit_selects_what_its_samples_say(make_scene: Maker, device: str) -> None:
    scene = make_scene([([600], 20), ([450], 100)], heads=1, dim=8, cluster_size=16)
    options = scene.options(threshold=0.8, estimator=estimator_id("fit"), sinks=4)
    options.estimator[scene.request_slots[1]] = CENTROID
    runner, _, _ = run(scene, options, device)
    selected = runner.reads.selected.cpu()
    assert torch.equal(selected[0], fit_in_whole_clusters(scene, 0, options))
    assert torch.equal(selected[1], scene.decode(options).selected[1]), "the other estimator is untouched"


def test_fit_is_exact_where_sampling_would_read_everything(make_scene: Maker, device: str) -> None:
    scene = make_scene([([120], 20)])
    options = scene.options(threshold=0.7, estimator=estimator_id("fit"))
    runner, _, _ = run(scene, options, device)
    expected = scene.decode(scene.options(threshold=0.7, estimator=estimator_id("exact")))
    assert torch.equal(runner.reads.selected.cpu(), expected.selected)


def test_an_estimator_the_device_lacks_reads_everything(make_scene: Maker, device: str) -> None:
    scene = make_scene([([200], 20)])
    runner, _, _ = run(scene, scene.options(threshold=0.7, estimator=estimator_id("exact")), device)
    assert (runner.reads.lengths == 220).all()
