import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tactic.kernels.index import Clusters, LayerArena, clusters_in
from tactic.kernels.index.codes import decode, encode
from tactic.kernels.kmeans import kmeans, kmeans_pool
from tactic.kernels.kmeans.outliers import isolate_outliers, outliers_in


def assert_partition(clusters: Clusters, n: int) -> None:
    """Every position is in exactly one cluster, grouped and ascending; no cluster is empty."""
    members = clusters.members.long()
    assert torch.equal(members.sort(-1).values, torch.arange(n).expand_as(members))
    assert torch.equal(clusters.starts, clusters.sizes.cumsum(-1) - clusters.sizes)
    assert (clusters.sizes >= 1).all()
    assert (clusters.sizes.sum(-1) == n).all()
    boundaries = torch.zeros(members.shape, dtype=torch.bool).scatter_(1, clusters.starts.long(), True)
    assert (boundaries[:, 1:] | (members[:, 1:] > members[:, :-1])).all()


def mean_of_members(keys: torch.Tensor, clusters: Clusters, problem: int, cluster: int) -> torch.Tensor:
    begin, size = int(clusters.starts[problem, cluster]), int(clusters.sizes[problem, cluster])
    return keys[problem, clusters.members[problem, begin : begin + size].long()].float().mean(0)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    n=st.integers(1, 700),
    dim=st.sampled_from([1, 3, 16]),
    cluster_size=st.sampled_from([16, 32, 64]),
    kind=st.sampled_from(["normal", "constant", "duplicates", "huge offset"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_every_position_is_in_exactly_one_cluster(
    n: int, dim: int, cluster_size: int, kind: str, dtype: torch.dtype
) -> None:
    keys = torch.randn(2, n, dim, generator=torch.Generator().manual_seed(n))
    if kind == "constant":
        keys = torch.ones_like(keys)
    elif kind == "duplicates":
        keys = keys[:, torch.arange(n) % 3 % n]
    elif kind == "huge offset":
        keys = keys + 200
    clusters = kmeans(keys.to(dtype), cluster_size)
    assert clusters.centroids.shape == (2, clusters_in(n, cluster_size), dim)
    assert clusters.centroids.dtype == dtype
    assert clusters.centroids.isfinite().all()
    assert (clusters.spread >= 0).all()
    assert_partition(clusters, n)


def test_centroids_and_spread_are_those_of_the_members() -> None:
    keys = torch.randn(3, 500, 8, generator=torch.Generator().manual_seed(1))
    clusters = kmeans(keys, 32)
    for problem, cluster in [(0, 0), (1, 7), (2, 15)]:
        mean = mean_of_members(keys, clusters, problem, cluster)
        torch.testing.assert_close(clusters.centroids[problem, cluster], mean)
        begin, size = int(clusters.starts[problem, cluster]), int(clusters.sizes[problem, cluster])
        own = keys[problem, clusters.members[problem, begin : begin + size].long()]
        torch.testing.assert_close(clusters.spread[problem, cluster], (own - mean).square().sum(-1).mean())


def test_separated_blobs_are_found() -> None:
    generator = torch.Generator().manual_seed(0)
    blob = torch.randperm(512, generator=generator) % 12  # 16 clusters, 4 of them for outliers
    centres = 50 * torch.eye(16)[:12]
    keys = centres[blob][None] + 0.1 * torch.randn(1, 512, 16, generator=generator)
    first_of_each = torch.stack([keys[0, (blob == i % 12).nonzero()[0, 0]] for i in range(16)])[None]
    clusters = kmeans(keys, 32, init=first_of_each)
    assert clusters.sizes[0, 12:].tolist() == [1, 1, 1, 1]
    assert (clusters.sizes[0, :12] >= 512 // 12 - 4).all()
    assert (clusters.spread < 1).all()


def test_the_farthest_keys_are_alone() -> None:
    generator = torch.Generator().manual_seed(6)
    keys = torch.randn(2, 640, 16, generator=generator)
    far = torch.tensor([[3, 77, 500], [10, 11, 639]])
    for problem, positions in enumerate(far):
        keys[problem, positions] = 20 * torch.randn(3, 16, generator=generator)
    clusters = kmeans(keys, 32)
    alone = clusters.members.gather(1, clusters.starts[:, -outliers_in(20) :].long())
    assert (clusters.sizes[:, -outliers_in(20) :] == 1).all()
    assert torch.equal(alone, alone.sort(-1).values)
    for problem, positions in enumerate(far.tolist()):
        # One that was drawn as a first centroid is alone already.
        sizes = clusters.sizes[problem].repeat_interleave(clusters.sizes[problem].long())
        own = sizes[[clusters.members[problem].tolist().index(p) for p in positions]]
        assert own.tolist() == [1, 1, 1]


def test_outliers_of_equal_distance_are_the_first_ones() -> None:
    labels, distances = torch.zeros(2, 9, dtype=torch.int64), torch.ones(2, 9)
    distances[1, [4, 8]] = 2.0
    isolate_outliers(labels, distances, 8)
    assert labels.tolist() == [[6, 7, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 6, 0, 0, 0, 7]]
    assert distances.tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 1, 0]]


def test_iterations_reduce_the_spread() -> None:
    keys = torch.randn(2, 1024, 8, generator=torch.Generator().manual_seed(2))
    totals = []
    for iterations in (1, 3, 10):
        clusters = kmeans(keys, 32, max_iters=iterations)
        totals.append((clusters.spread * clusters.sizes).sum())
    assert totals[0] > totals[1] > totals[2]


def test_a_problem_does_not_depend_on_its_neighbours() -> None:
    keys = torch.randn(4, 300, 8, generator=torch.Generator().manual_seed(3))
    together = kmeans(keys, 16)
    alone = kmeans(keys[2:3], 16)
    assert torch.equal(together.members[2:3], alone.members)


def test_warm_start_from_its_own_result_is_no_worse() -> None:
    keys = torch.randn(1, 400, 8, generator=torch.Generator().manual_seed(4))
    settled = kmeans(keys, 32, max_iters=100)
    again = kmeans(keys, 32, max_iters=1, init=settled.centroids)
    before, after = ((c.spread * c.sizes).sum() for c in (settled, again))
    assert after < 1.02 * before


def test_keys_of_8_bits_have_centroids_of_16() -> None:
    pool = torch.randn(200, 2, 8, generator=torch.Generator().manual_seed(5)).to(torch.float8_e4m3fn)
    slot_ids = torch.arange(200)[None]
    clusters, wide = kmeans_pool(pool, slot_ids, 32), kmeans_pool(pool.bfloat16(), slot_ids, 32)
    assert clusters.centroids.dtype == torch.bfloat16
    assert torch.equal(clusters.centroids, wide.centroids)
    assert torch.equal(clusters.members, wide.members)


def test_bad_arguments_are_named() -> None:
    keys = torch.zeros(1, 8193, 4)
    with pytest.raises(ValueError, match="n=8193"):
        kmeans(keys, 32)
    with pytest.raises(ValueError, match="max_iters=0"):
        kmeans(keys[:, :10], 32, max_iters=0)
    with pytest.raises(ValueError, match="init has shape"):
        kmeans(keys[:, :100], 32, init=torch.zeros(1, 2, 4))


@pytest.mark.parametrize("n", [1, 511, 512, 513, 8192])
def test_arena_returns_what_was_written(n: int) -> None:
    arena = LayerArena.create(heads=2, units=20, head_dim=4, cluster_size=16)
    clusters = kmeans(torch.randn(2, n, 4, generator=torch.Generator().manual_seed(n)), 16, max_iters=1)
    arena.write(3, clusters)
    stored = arena.read(3, n)
    assert torch.equal(stored.centroids, decode(*encode(clusters.centroids)))
    for name in ("spread", "members", "starts", "sizes"):
        assert torch.equal(getattr(stored, name), getattr(clusters, name))
    arena.blank(3, n)
    assert arena.read(3, n).centroids.isnan().all()


def test_arena_refuses_what_does_not_fit() -> None:
    arena = LayerArena.create(heads=1, units=2, head_dim=4, cluster_size=32)
    clusters = kmeans(torch.zeros(1, 600, 4), 32)
    with pytest.raises(ValueError, match="at unit 1 takes 2 units, the arena has 2"):
        arena.write(1, clusters)
    with pytest.raises(ValueError, match="expected \\[heads, clusters, head_dim\\]"):
        arena.write(0, kmeans(torch.zeros(1, 600, 4), 16))
    with pytest.raises(ValueError, match="cluster_size=8"):
        LayerArena.create(heads=1, units=2, head_dim=4, cluster_size=8)


def test_layers_of_one_call_can_be_split() -> None:
    clusters = kmeans(torch.randn(6, 100, 4, generator=torch.Generator().manual_seed(0)), 32)
    layers = clusters.split(3)
    assert [layer.members.shape for layer in layers] == [(2, 100)] * 3
    assert torch.equal(layers[1].centroids, clusters.centroids[2:4])
    with pytest.raises(ValueError, match="parts=4"):
        clusters.split(4)
