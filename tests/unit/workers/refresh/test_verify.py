"""What of a clustering actor's results the scheduler refuses to believe."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from tactic.kernels.index import Clusters
from tactic.workers.refresh.compute import cluster_pieces, flatten
from tactic.workers.refresh.messages import Piece
from tactic.workers.refresh.verify import FAULTS, describe, faults, unflatten

LAYERS, HEADS, DIM, CLUSTER = 2, 3, 8, 16
LENGTHS = (64, 41)
LIKE = torch.empty(LAYERS * HEADS, 0, DIM)


@pytest.fixture(scope="module")
def result() -> list[Clusters]:
    keys = torch.randn(LAYERS, HEADS, sum(LENGTHS), DIM, generator=torch.Generator().manual_seed(3))
    return cluster_pieces([keys], [Piece(0, 64, 0), Piece(64, 41, 1)], CLUSTER, seed=1)


def found_in(clusters: Sequence[Clusters]) -> str:
    return describe(torch.stack([faults(each) for each in clusters]))


def test_a_sound_result_is_read_back(result: list[Clusters]) -> None:
    read = unflatten(flatten(result), LENGTHS, CLUSTER, LIKE)
    assert not found_in(read)
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
    ("spoil", "fault"),
    [
        (_nan("centroids"), 0),
        (_nan("spread"), 0),
        (_empty_cluster, 1),
        (_too_many_members, 1),
        (_wrong_starts, 1),
        (_swap_member, 2),
        (_member_outside, 2),
    ],
)
def test_what_is_no_partition_is_told(
    result: list[Clusters], spoil: Callable[[Clusters], Clusters], fault: int
) -> None:
    assert found_in([result[0], spoil(result[1])]) == f"piece 1 {FAULTS[fault]}"


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda c: replace(c, members=c.members.int()), "members of piece 1 is torch.int32"),
        (lambda c: replace(c, centroids=c.centroids.bfloat16()), "centroids of piece 1 is torch.bfloat16"),
        (lambda c: replace(c, centroids=c.centroids[..., :4]), "centroids of piece 1"),
        (lambda c: replace(c, sizes=c.sizes[:, 1:]), "sizes of piece 1"),
        (lambda c: replace(c, spread=c.spread[1:]), "spread of piece 1"),
    ],
)
def test_other_shapes_and_dtypes_are_refused(
    result: list[Clusters], spoil: Callable[[Clusters], Clusters], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        unflatten(flatten([result[0], spoil(result[1])]), LENGTHS, CLUSTER, LIKE)


def test_missing_tensors_are_refused(result: list[Clusters]) -> None:
    with pytest.raises(ValueError, match="9 tensors for 2 pieces"):
        unflatten(flatten(result)[:-1], LENGTHS, CLUSTER, LIKE)
