"""The actor's k-means."""

import pytest
import torch

from tactic.kernels.index import Clusters
from tactic.workers.refresh.compute import cluster_pieces
from tactic.workers.refresh.messages import Piece

LAYERS, HEADS, DIM, CLUSTER = 2, 3, 8, 16
LENGTHS = (64, 41)


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
