"""The actor's k-means, and what of its results the scheduler refuses to believe."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tactic.kernels.index import Clusters
from tactic.workers.refresh.compute import cluster_pieces, flatten, validated
from tactic.workers.refresh.messages import Piece

LAYERS, HEADS, DIM, CLUSTER = 2, 3, 8, 16
LENGTHS = (64, 41)
LIKE = torch.empty(LAYERS * HEADS, 0, DIM)


@pytest.fixture(scope="module")
def keys() -> torch.Tensor:
    return torch.randn(LAYERS, HEADS, sum(LENGTHS), DIM, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def result(keys: torch.Tensor) -> list[Clusters]:
    return cluster_pieces([keys], [Piece(0, 64, 0), Piece(64, 41, 1)], CLUSTER, seed=1)


def test_each_piece_is_clustered_by_itself(keys: torch.Tensor, result: list[Clusters]) -> None:
    alone = cluster_pieces([keys[:, :, 64:]], [Piece(0, 41, 0)], CLUSTER, seed=1)[0]
    for name in vars(alone):
        assert torch.equal(getattr(alone, name), getattr(result[1], name))


def test_a_warm_piece_starts_from_its_old_centroids(keys: torch.Tensor, result: list[Clusters]) -> None:
    warm = cluster_pieces(
        [keys, result[1].centroids], [Piece(0, 64, 0), Piece(64, 41, 1, warm_unit=3)], CLUSTER, seed=9
    )
    # K-means had converged, so from there nothing moves.
    assert torch.equal(warm[1].members, result[1].members)
    assert not torch.equal(warm[0].members, result[0].members)


def test_a_sound_result_is_read_back(result: list[Clusters]) -> None:
    read = validated(flatten(result), LENGTHS, CLUSTER, LIKE)
    assert [c.members.shape[1] for c in read] == list(LENGTHS)
    assert all(torch.equal(a, b) for a, b in zip(flatten(read), flatten(result), strict=True))


def _nan(name: str) -> Callable[[Clusters], Clusters]:
    def spoil(clusters: Clusters) -> Clusters:
        tensor = getattr(clusters, name).clone()
        tensor.view(-1)[5] = torch.inf if name == "spread" else torch.nan
        return replace(clusters, **{name: tensor})

    return spoil


def _swap_member(clusters: Clusters) -> Clusters:
    members = clusters.members.clone()
    members[2, 0] = members[2, 1]
    return replace(clusters, members=members)


def _member_outside(clusters: Clusters) -> Clusters:
    members = clusters.members.clone()
    members[0, members[0].argmax()] = 41
    return replace(clusters, members=members)


def _empty_cluster(clusters: Clusters) -> Clusters:
    sizes = clusters.sizes.clone()
    sizes[:, 1] += sizes[:, 0]
    sizes[:, 0] = 0
    return replace(clusters, sizes=sizes, starts=(sizes.cumsum(-1) - sizes).int())


def _too_many_members(clusters: Clusters) -> Clusters:
    sizes = clusters.sizes.clone()
    sizes[4, -1] += 1
    return replace(clusters, sizes=sizes)


def _wrong_starts(clusters: Clusters) -> Clusters:
    return replace(clusters, starts=clusters.starts + 1)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_nan("centroids"), "not finite"),
        (_nan("spread"), "not finite"),
        (_swap_member, "not a permutation"),
        (_member_outside, "not a permutation"),
        (_empty_cluster, "do not cover"),
        (_too_many_members, "do not cover"),
        (_wrong_starts, "do not cover"),
        (lambda c: replace(c, members=c.members.int()), "members of piece 1 is torch.int32"),
        (lambda c: replace(c, centroids=c.centroids.bfloat16()), "centroids of piece 1 is torch.bfloat16"),
        (lambda c: replace(c, centroids=c.centroids[..., :4]), "centroids of piece 1"),
        (lambda c: replace(c, sizes=c.sizes[:, 1:]), "sizes of piece 1"),
        (lambda c: replace(c, spread=c.spread[1:]), "spread of piece 1"),
    ],
)
def test_an_unsound_result_is_refused(
    result: list[Clusters], spoil: Callable[[Clusters], Clusters], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        validated(flatten([result[0], spoil(result[1])]), LENGTHS, CLUSTER, LIKE)


def test_missing_tensors_are_refused(result: list[Clusters]) -> None:
    with pytest.raises(ValueError, match="9 tensors for 2 pieces"):
        validated(flatten(result)[:-1], LENGTHS, CLUSTER, LIKE)
