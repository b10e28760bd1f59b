from collections.abc import Callable

import pytest
import torch

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.clusters import ClusterQuality, rank_recall, silhouette
from tactic.workers.evaluation.analysis.interval import Interval
from tactic.workers.evaluation.analysis.partitions import Partition, global_kmeans
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.layer import Layer


def blobs(count: int = 32, size: int = 32, noise: float = 0.01) -> torch.Tensor:
    """`[count * size, 2, 8]`: tight, distant groups of consecutive positions."""
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(count, 2, 8, generator=generator)
    return centres.repeat_interleave(size, 0) + noise * torch.randn(count * size, 2, 8, generator=generator)


def test_perfect_clusters_have_a_silhouette_near_1() -> None:
    keys = blobs()
    labels = (torch.arange(1024) // 32).expand(2, -1)
    centroids = keys.view(32, 32, 2, 8).mean(1).transpose(0, 1)
    assert silhouette(keys, Partition(labels, centroids), 0).min() > 0.95
    shuffled = labels[:, torch.randperm(1024, generator=torch.Generator().manual_seed(1))]
    assert silhouette(keys, Partition(shuffled, centroids), 0).mean() < 0


def test_silhouette_by_hand() -> None:
    keys = torch.tensor([0.0, 1.0, 4.0, 6.0]).view(4, 1, 1)
    partition = Partition(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[[0.5], [5.0]]]))
    expected = torch.tensor([(5 - 1) / 5, (4 - 1) / 4, (3.5 - 2) / 3.5, (5.5 - 2) / 5.5])
    torch.testing.assert_close(silhouette(keys, partition, 0).sort().values[0], expected.sort().values)
    alone = Partition(torch.tensor([[0, 1, 2, 2]]), torch.zeros(1, 3, 1))
    assert (silhouette(keys, alone, 0) == 0).sum() == 2, "keys that are alone"


def test_global_kmeans_divides_all_positions() -> None:
    keys = torch.randn(1000, 2, 8, generator=torch.Generator().manual_seed(0))
    partition = global_kmeans(keys, 32)
    assert partition.count == 32
    assert (partition.sizes > 0).all()
    assert (partition.sizes.sum(-1) == 1000).all()
    for head in range(2):
        for cluster in range(32):
            members = keys[partition.labels[head] == cluster, head]
            torch.testing.assert_close(
                members.mean(0), partition.centroids[head, cluster], rtol=1e-4, atol=1e-5
            )


def test_the_partition_of_an_index_has_the_means_of_its_members() -> None:
    keys = blobs(noise=1.0)
    built = Partition.of_index(BuildIndex()(Layer(0, keys, sinks=0)).clusters)
    assert built.count == global_kmeans(keys, 32).count
    step = float(keys.abs().max()) / 127
    for head in range(2):
        for cluster in range(built.count):
            mean = keys[built.labels[head] == cluster, head].mean(0)
            torch.testing.assert_close(built.centroids[head, cluster], mean, atol=0.51 * step, rtol=0)


def test_positions_in_no_cluster_are_left_out() -> None:
    partition = Partition(torch.tensor([[0, 0, 1, 1]]), torch.zeros(1, 2, 1)).without(1)
    assert partition.sizes.tolist() == [[1, 2]]
    assert partition.mass(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])).tolist() == [[2.0, 7.0]]


def test_rank_recall_by_hand() -> None:
    wanted, sizes = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]]), torch.tensor([[3, 3, 4], [3, 3, 4]])
    assert rank_recall(wanted, sizes, (1, 2)) == [0.25, 1.0]
    assert rank_recall(wanted[1:], sizes[1:], (1, 2)) == [1.0, 1.0]


def test_every_order_is_compared(random_capture: Callable[..., Capture]) -> None:
    question = ClusterQuality(0.9)
    for seed in range(3):
        question.add(random_capture(1024, seed=seed))
    by_context, by_text = question.tables()
    names = ["k-means, segments", "k-means, global", "positional blocks"]
    assert [row["clusters"] for row in by_context.rows] == names
    assert [row["text"] for row in by_text.rows] == ["text"] * 3
    for row in by_context.rows:
        assert row["contexts"] == 3
        values = {name: cell for name, cell in row.items() if isinstance(cell, Interval)}
        assert all(value.half_width is not None for value in values.values())
        assert values["recall at 1x"].mean <= values["recall at 2x"].mean <= values["recall at 4x"].mean <= 1
        assert values["perfect"].mean >= values["oracle"].mean
        assert values["perfect / oracle"].mean == pytest.approx(
            values["perfect"].mean / values["oracle"].mean
        )
