"""The Triton kernels in Triton's interpreter, against the definition."""

import dataclasses
from itertools import product

import pytest
import torch

from tactic.kernels.index import Clusters, clusters_in
from tactic.kernels.kmeans import triton as kernels
from tactic.kernels.kmeans.naive import initial_positions
from tactic.kernels.kmeans.naive import kmeans as naive
from tactic.kernels.kmeans.outliers import outliers_in
from tactic.kernels.kmeans.triton import kmeans_pool_triton


def fields(clusters: Clusters) -> list[torch.Tensor]:
    return [getattr(clusters, field.name).cpu() for field in dataclasses.fields(clusters)]


# The interpreter multiplies no bf16 matrices; the GPU check does.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("segments", "heads", "n", "dim", "cluster_size"),
    [(2, 2, 200, 16, 32), (1, 3, 130, 24, 16), (1, 1, 1, 8, 32), (1, 1, 17, 16, 16), (1, 1, 1100, 16, 16)],
)
def test_matches_the_definition(
    segments: int, heads: int, n: int, dim: int, cluster_size: int, dtype: torch.dtype, device: str
) -> None:
    generator = torch.Generator().manual_seed(n)
    pool = torch.full((2 * segments * n + 1, heads, dim), torch.nan, dtype=dtype)
    slot_ids = torch.randperm(len(pool), generator=generator)[: segments * n].view(segments, n)
    pool[slot_ids] = torch.randn(segments, n, heads, dim, generator=generator).to(dtype)
    keys = pool[slot_ids].transpose(1, 2).reshape(segments * heads, n, dim)
    count = clusters_in(n, cluster_size)
    init = keys[:, initial_positions(n, count, 0)]

    expected = naive(keys, cluster_size, max_iters=4, init=init)
    init = init[:, : count - outliers_in(count)].to(device)
    actual = kmeans_pool_triton(pool.to(device), slot_ids.to(device), cluster_size, max_iters=4, init=init)
    actual = Clusters(*fields(actual))
    assert torch.equal(actual.members.sort(-1).values, expected.members.sort(-1).values)
    assert torch.equal(actual.starts, actual.sizes.cumsum(-1) - actual.sizes)
    if dtype == torch.float32:
        for name in ("members", "starts", "sizes"):
            assert torch.equal(getattr(actual, name), getattr(expected, name))
        torch.testing.assert_close(actual.centroids, expected.centroids)
        torch.testing.assert_close(actual.spread, expected.spread, rtol=1e-4, atol=1e-5)
    else:
        cost = [(c.spread * c.sizes).sum() for c in (actual, expected)]
        torch.testing.assert_close(*cost, rtol=0.02, atol=0)


def test_refills_empty_clusters_like_the_definition(device: str) -> None:
    """Small integers, so that equal distances are equal to the bit."""
    keys = torch.randint(-4, 5, (1, 100, 16), generator=torch.Generator().manual_seed(0)).float()
    keys[:, 10:90] = 1.0
    init = keys[:, 20:27]
    expected = naive(keys, 16, max_iters=1, init=init)
    pool, slot_ids = keys.view(100, 1, 16).to(device), torch.arange(100, device=device)[None]
    init = init[:, : 7 - outliers_in(7)].to(device)
    actual = kmeans_pool_triton(pool, slot_ids, 16, max_iters=1, init=init)
    assert torch.equal(actual.members.cpu(), expected.members)
    assert torch.equal(pool.cpu().view_as(keys), keys), "the pool is only read"
    assert (kmeans_pool_triton(pool, slot_ids, 16, max_iters=3, init=init).sizes >= 1).all()


def test_the_division_of_the_work_changes_nothing(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One program that walks over all positions, or one for each tile or chunk of them."""
    monkeypatch.setattr(kernels, "_CHUNK", 256)
    pool = torch.randn(700, 2, 16, generator=torch.Generator().manual_seed(1)).half().to(device)
    slot_ids = torch.arange(700, device=device).flip(0).view(1, 700)
    init = pool[: 44 - outliers_in(44)].transpose(0, 1)
    results = []
    for programs, unsplit in [(1, 0), (4, 0), (1000, 1000)]:
        monkeypatch.setattr(kernels, "_PROGRAMS", programs)
        monkeypatch.setattr(kernels, "_UNSPLIT", unsplit)
        results.append(fields(kmeans_pool_triton(pool, slot_ids, 16, max_iters=3, init=init)))
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_three_quarters_of_a_power_of_two_are_two_tiles(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In both products: of 64 clusters, 16 wait for outliers."""
    monkeypatch.setattr(kernels, "_WIDE", {**kernels._WIDE, "REST": 16})
    assert (tiles := kernels._tiles(kernels._WIDE, 48, 16, torch.float32))["CLUSTERS"] == 32
    assert tiles["REST"] == 16
    keys = torch.randn(1, 1024, 16, generator=torch.Generator().manual_seed(3))
    init = keys[:, initial_positions(1024, 64, 0)]
    expected = naive(keys, 16, max_iters=3, init=init)
    pool, slot_ids = keys.view(1024, 1, 16).to(device), torch.arange(1024, device=device)[None]
    actual = fields(kmeans_pool_triton(pool, slot_ids, 16, max_iters=3, init=init[:, :48].to(device)))
    for one, two in zip(actual, fields(expected), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("most", "rest"), [*product([64, 128, 256], [0, 16, 64]), (192, 64)])
@pytest.mark.parametrize("count", [1, 16, 48, 49, 96, 192, 200, 300, 384])
def test_tiles_hold_all_clusters_in_as_few_blocks_as_fit(most: int, rest: int, count: int) -> None:
    tiles = kernels._tiles({"CLUSTERS": most, "REST": rest}, count, 128, torch.bfloat16)
    block = tiles["CLUSTERS"] + tiles["REST"]
    assert tiles["REST"] == 0 or rest <= tiles["REST"] == tiles["CLUSTERS"] // 2
    assert 16 <= tiles["CLUSTERS"] <= most
    blocks = -(-count // block)
    assert blocks == -(-count // most)
    assert block <= most


def test_keys_of_8_bits_are_multiplied_as_the_centroids_are(device: str) -> None:
    pool = torch.randn(300, 2, 16, generator=torch.Generator().manual_seed(2)).to(torch.float8_e4m3fn)
    slot_ids = torch.arange(300)[None]
    keys = pool.half().transpose(0, 1)
    init = keys[:, : 10 - outliers_in(10)].contiguous()
    small = kmeans_pool_triton(pool.to(device), slot_ids.to(device), 32, max_iters=3, init=init.to(device))
    wide = kmeans_pool_triton(
        pool.half().to(device), slot_ids.to(device), 32, max_iters=3, init=init.to(device)
    )
    assert small.centroids.dtype == torch.float16
    assert all(torch.equal(one, two) for one, two in zip(fields(small), fields(wide), strict=True))
