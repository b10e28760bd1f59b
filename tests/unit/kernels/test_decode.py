import dataclasses
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tactic.kernels.decode import decode
from tactic.kernels.estimators import NAMES, estimator_id

Maker = Callable[..., "Scene"]  # noqa: F821  # the type lives in conftest
MIXED = [([1024, 512], 77), ([], 40), ([700], 1), ([2048, 100, 513], 300), ([1], 0), ([64], 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [16, 64, 128])
def test_threshold_one_equals_dense_to_the_bit(make_scene: Maker, dtype: torch.dtype, dim: int) -> None:
    scene = make_scene(MIXED, dtype=dtype, dim=dim)
    result = scene.decode(scene.options(threshold=1.0), measure=True)
    assert torch.equal(result.out, scene.dense()[0])
    assert (result.read == scene.seq_lens[:, None]).all()
    assert (result.selected == scene.seq_lens[:, None]).all()
    assert result.share is not None
    assert (result.share == 1).all()


def test_dense_matches_the_formula(make_scene: Maker) -> None:
    scene = make_scene(MIXED)
    out, lse = scene.dense()
    for i in range(len(MIXED)):
        keys = scene.k_pool[scene.slot_ids(i)].repeat_interleave(3, 1)
        values = scene.v_pool[scene.slot_ids(i)].repeat_interleave(3, 1)
        logits = torch.einsum("hd,nhd->hn", scene.q[i], keys) * scene.scale
        torch.testing.assert_close(lse[i], logits.logsumexp(-1))
        torch.testing.assert_close(out[i], torch.einsum("hn,nhd->hd", logits.softmax(-1), values))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_error_is_within_the_bound_of_the_measured_share(
    make_scene: Maker, name: str, threshold: float
) -> None:
    scene = make_scene(MIXED)
    result = scene.decode(scene.options(threshold=threshold, estimator=estimator_id(name)), measure=True)
    assert result.share is not None
    error = (result.out - scene.dense()[0]).norm(dim=-1)
    for i in range(len(MIXED)):
        largest = scene.v_pool[scene.slot_ids(i)].norm(dim=-1).amax(0).repeat_interleave(3)
        assert (error[i] <= 2 * (1 - result.share[i]) * largest + 1e-5).all()
    if threshold <= 0.9:
        sparse = result.read[3] < scene.seq_lens[3]
        # At 0.9, `fit` asks for nearly all in one of these heads.
        assert sparse.all() or (name == "fit" and sparse.any()), "a long structured request is read sparsely"


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    segments=st.lists(st.integers(1, 600), max_size=3),
    tail=st.integers(1, 40),
    name=st.sampled_from(NAMES),
    threshold=st.sampled_from([1e-6, 0.3, 0.9, 0.999999, 1.0]),
    cluster_size=st.sampled_from([16, 64]),
    sinks=st.sampled_from([0, 1, 16, 300]),
)
def test_any_length_decodes(
    make_scene: Maker,
    segments: list[int],
    tail: int,
    name: str,
    threshold: float,
    cluster_size: int,
    sinks: int,
) -> None:
    scene = make_scene([(segments, tail)], cluster_size=cluster_size, dim=3, seed=tail)
    options = scene.options(threshold=threshold, estimator=estimator_id(name), sinks=sinks, min_clustered=0)
    result = scene.decode(options, measure=True)
    assert result.out.isfinite().all()
    assert result.share is not None
    assert (result.share > 0).all()
    length = sum(segments) + tail
    always = min(sinks, sum(segments)) + tail
    assert (result.read >= always).all()
    assert (result.read <= length).all()
    grouped = result.selected.view(2, 3)
    assert (result.read[0] >= grouped.amax(1)).all(), "the union holds each head's selection"
    assert (result.read[0] <= grouped.sum(1)).all()
    if name == "exact":
        assert (result.share >= threshold - 1e-5).all()


def test_order_in_the_batch_changes_nothing(make_scene: Maker) -> None:
    scene = make_scene(MIXED)
    straight = scene.decode(scene.options(threshold=0.8), measure=True)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = dataclasses.replace(
        scene,
        q=scene.q[order],
        request_slots=scene.request_slots[order],
        seq_lens=scene.seq_lens[order],
    ).decode(scene.options(threshold=0.8), measure=True)
    for name in ("out", "read", "selected", "share"):
        assert torch.equal(getattr(straight, name)[order], getattr(shuffled, name))


def test_a_batch_mixes_dense_and_sparse_requests_and_estimators(make_scene: Maker) -> None:
    scene = make_scene([([2048], 50)] * 4)
    options = scene.options(threshold=0.9)
    slots = scene.request_slots.tolist()
    options.dense[slots[0]] = True
    options.threshold[slots[1]] = 0.3
    options.estimator[slots[2]] = estimator_id("exact")
    mixed = scene.decode(options)
    assert torch.equal(mixed.out[0], scene.dense()[0][0])
    assert (mixed.read[0] == 2098).all()
    assert (mixed.read[1] < scene.decode(scene.options(threshold=0.9)).read[1]).all()
    oracle = scene.decode(scene.options(threshold=0.9, estimator=estimator_id("exact")))
    assert torch.equal(mixed.out[2], oracle.out[2])


def test_a_higher_threshold_reads_more(make_scene: Maker) -> None:
    scene = make_scene([([4096], 50)])
    for name in NAMES:
        reads = [
            scene.decode(scene.options(threshold=p, estimator=estimator_id(name))).read
            for p in (0.3, 0.6, 0.9, 0.99)
        ]
        assert all((low <= high).all() for low, high in pairwise(reads))
        assert (reads[0] < reads[-1]).any()


def test_no_index_reads_everything(make_scene: Maker) -> None:
    scene = make_scene([([], 3000), ([1000], 2000)])
    result = scene.decode(scene.options(threshold=0.5, min_clustered=1024))
    assert torch.equal(result.out, scene.dense()[0])


def test_splitting_a_segment_of_the_same_clusters_changes_nothing(make_scene: Maker) -> None:
    """Units of a segment may lie anywhere in the arena."""
    scene = make_scene([([1024], 30)])
    options = scene.options(threshold=0.7)
    before = scene.decode(options)
    slot, unit = int(scene.request_slots[0]), int(scene.table.unit[scene.request_slots[0], 0])
    clusters = scene.arena.read(unit, 1024)
    scene.arena.write(0, dataclasses.replace(clusters, centroids=clusters.centroids.clone()))
    scene.table.write(slot, [(0, 1024)])
    assert torch.equal(before.out, scene.decode(options).out)


def test_bad_state_is_named(make_scene: Maker) -> None:
    scene = make_scene([([1024], 0)])
    options = scene.options(threshold=0.7)
    with pytest.raises(ValueError, match="covers 1024 positions, the request has 1023"):
        dataclasses.replace(scene, seq_lens=scene.seq_lens - 1).decode(options)
    options.estimator.fill_(9)
    with pytest.raises(ValueError, match="estimator id 9"):
        scene.decode(options)
    options.threshold.fill_(0)
    with pytest.raises(ValueError, match="is outside \\(0, 1\\]"):
        scene.decode(options)
    assert decode.__doc__ is not None


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"threshold": 0.0}, "threshold=0.0"),
        ({"threshold": 1.1}, "threshold=1.1"),
        ({"sinks": -1}, "sinks=-1"),
    ],
)
def test_bad_options_are_named(make_scene: Maker, setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_scene([([], 1)]).options(**setting)
