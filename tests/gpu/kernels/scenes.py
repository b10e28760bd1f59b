"""Random serving scenes of fixed capacity, so that all scenes of a shape run on the same compiled kernels."""

import random
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tactic.kernels.decode import DecodeResult, decode
from tactic.kernels.dense import dense_decode
from tactic.kernels.estimators import estimator_id
from tactic.kernels.index import Clusters, DecodeOptions, LayerArena, SegmentTable, clusters_in, units_in
from tactic.kernels.kmeans.naive import kmeans

CAPACITY = 6144  # positions of a request at most
SEGMENTS = 4
SINKS = 16
_UNITS = CAPACITY // 512 + SEGMENTS  # of a request; every segment may round up

T = TypeVar("T")


@dataclass(frozen=True)
class Shape:
    """What kernels are compiled for. All else, down to the length of each request, varies between scenes.

    Attributes:
        heads: KV heads.
        group: query heads of each.
        dim: d.
        cluster_size: c.
        dtype: of queries and centroids.
        batch: requests.
        kv_dtype: of keys and values, if another.
        fit: the estimator `fit` is served, too.
    """

    heads: int
    group: int
    dim: int
    cluster_size: int
    dtype: torch.dtype
    batch: int
    kv_dtype: torch.dtype | None = None
    fit: bool = False

    def __str__(self) -> str:
        kinds = [self.dtype] + ([self.kv_dtype] if self.kv_dtype else [])
        names = "/".join(str(kind).removeprefix("torch.") for kind in kinds)
        fit = ", fit" if self.fit else ""
        heads = f"{self.heads} KV heads x {self.group}"
        return f"{self.batch} x {heads}, d {self.dim}, c {self.cluster_size}, {names}{fit}"


@dataclass(frozen=True)
class Scene:
    """A KV pool in scattered slots, its index, and a batch of queries; what nobody may read is NaN."""

    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    req_to_token: Tensor
    request_slots: Tensor
    seq_lens: Tensor
    table: SegmentTable
    arena: LayerArena
    options: DecodeOptions
    scale: float

    def dequantized(self) -> "Scene":
        """The same numbers in the queries' dtype, which the definitions need."""
        return replace(self, k_pool=self.k_pool.to(self.q.dtype), v_pool=self.v_pool.to(self.q.dtype))

    def definition(self) -> DecodeResult:
        """What plain torch reads and puts out; with an estimator that a GPU lacks, everything."""
        options = replace(
            self.options, dense=self.options.dense | (self.options.estimator == estimator_id("exact"))
        )
        return decode(
            self.q,
            self.k_pool,
            self.v_pool,
            self.req_to_token,
            self.request_slots,
            self.seq_lens,
            self.table,
            self.arena,
            options,
            scale=self.scale,
            measure=True,
        )

    def dense(self) -> tuple[Tensor, Tensor]:
        """Dense output `[B, Hq, d]` and log-sum-exp `[B, Hq]`."""
        tables = self.req_to_token, self.request_slots, self.seq_lens
        return dense_decode(self.q, self.k_pool, self.v_pool, *tables, scale=self.scale)


def to_device(value: T, device: str) -> T:
    """A dataclass with all its tensors, however deep, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if is_dataclass(value) and not isinstance(value, type):
        moved = {each.name: to_device(getattr(value, each.name), device) for each in fields(value)}
        return replace(value, **moved)
    return value


def make_scene(shape: Shape, seed: int) -> Scene:
    """Requests short and long, with any index or none, in a batch, with options of their own."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    requests = [_lengths(rng) for _ in range(shape.batch)]
    totals = [sum(segments) + tail for segments, tail in requests]
    rows = shape.batch + 2
    request_slots = torch.randperm(rows, generator=generator)[: shape.batch].to(torch.int32)
    slots = sum(totals) + rng.randint(1, 2000)
    kv_dtype = shape.kv_dtype or shape.dtype
    k_pool = torch.full((slots, shape.heads, shape.dim), torch.nan).to(kv_dtype)
    v_pool = k_pool.clone()
    req_to_token = torch.full((rows, CAPACITY), 2**30, dtype=torch.int32)
    table = SegmentTable.create(slots=rows, segments=SEGMENTS)
    arena = LayerArena.create(
        heads=shape.heads,
        units=shape.batch * _UNITS + 1,
        head_dim=shape.dim,
        cluster_size=shape.cluster_size,
    )
    for poisoned in (arena.factors, arena.spread):
        poisoned.fill_(torch.nan)
    for unwritten in (arena.members, arena.starts, arena.sizes, table.unit, table.start, table.length):
        unwritten.fill_(torch.iinfo(unwritten.dtype).max)
    free = torch.randperm(slots, generator=generator)
    unit = 1
    cluster = rng.choice([_clusters, _uneven_clusters])
    spread = rng.choice([0.0, 0.7, 1.5, 3.0])  # of topics: none, as in text, so that few tokens matter
    for (segments, _), slot, total in zip(requests, request_slots.tolist(), totals, strict=True):
        ids, free = free[:total], free[total:]
        req_to_token[slot, :total] = ids
        keys = _keys(total, shape, spread, generator).to(kv_dtype)
        k_pool[ids] = keys
        v_pool[ids] = torch.randn(total, shape.heads, shape.dim, generator=generator).to(kv_dtype)
        begin, row = 0, []
        for length in segments:
            part = keys[begin : begin + length].float().transpose(0, 1)
            arena.write(unit, cluster(part, shape, generator))
            row.append((unit, length))
            begin, unit = begin + length, unit + units_in(length)
        table.write(slot, row)
    sharpness = rng.choice([0.3, 1.5, 3.0, 6.0])
    q = sharpness * torch.randn(shape.batch, shape.heads * shape.group, shape.dim, generator=generator)
    return Scene(
        q=q.to(shape.dtype),
        k_pool=k_pool,
        v_pool=v_pool,
        req_to_token=req_to_token,
        request_slots=request_slots,
        seq_lens=torch.tensor(totals, dtype=torch.int32),
        table=table,
        arena=arena,
        options=_options(shape, rows, rng),
        scale=shape.dim**-0.5,
    )


def _lengths(rng: random.Random) -> tuple[list[int], int]:
    """Segments and tail of a request."""
    tail = rng.choice([1, 2, rng.randint(1, 300), rng.randint(1, 1000)])
    kind = rng.choice(["none", "short", *["some"] * 4, *["long"] * 3])
    if kind == "none":
        return [], tail
    if kind == "short":
        return [rng.randint(1, 100)], tail
    if kind == "some":
        return [rng.randint(1, 1000) for _ in range(rng.randint(1, SEGMENTS))], tail
    return [rng.randint(2048, 4096), rng.randint(1, 1000)], tail


def _keys(n: int, shape: Shape, spread: float, generator: torch.Generator) -> Tensor:
    """`[n, H, d]` fp32: topics that last 8 positions and recur."""
    topics = spread * torch.randn(max(1, n // 64), shape.heads, shape.dim, generator=generator)
    chosen = torch.randint(len(topics), (n // 8 + 1,), generator=generator).repeat_interleave(8)[:n]
    return topics[chosen] + 0.6 * torch.randn(n, shape.heads, shape.dim, generator=generator)


def _clusters(keys: Tensor, shape: Shape, generator: torch.Generator) -> Clusters:
    """K-means of keys `[H, n, d]`."""
    seed = int(torch.randint(1 << 30, (), generator=generator))
    made = kmeans(keys, shape.cluster_size, max_iters=2, seed=seed)
    return replace(made, centroids=made.centroids.to(shape.dtype))


def _uneven_clusters(keys: Tensor, shape: Shape, generator: torch.Generator) -> Clusters:
    """Like keys `[H, n, d]` together, in clusters of any size from 1 on, more uneven than k-means's."""
    heads, n, dim = keys.shape
    count = clusters_in(n, shape.cluster_size)
    order = (keys @ torch.randn(dim, generator=generator)).argsort(-1)
    cuts = torch.stack([torch.randperm(n - 1, generator=generator)[: count - 1] + 1 for _ in range(heads)])
    bounds = torch.nn.functional.pad(cuts.sort(-1).values, (1, 0))
    sizes = torch.diff(bounds, append=torch.full((heads, 1), n))
    label = torch.stack([torch.arange(count).repeat_interleave(each) for each in sizes])
    # Members ascend within a cluster.
    members = order.gather(-1, (label * n + order).argsort(-1))
    points = keys.gather(1, members[..., None].expand_as(keys))
    at = label[..., None].expand_as(points)
    centroids = torch.zeros(heads, count, dim).scatter_add_(1, at, points) / sizes[..., None]
    centroids = centroids.to(shape.dtype)
    squares = (points - centroids.float().gather(1, at)).square().sum(-1)
    spread = torch.zeros(heads, count).scatter_add_(1, label, squares) / sizes
    return Clusters(
        centroids=centroids,
        spread=spread,
        members=members.to(torch.int16),
        starts=bounds.to(torch.int32),
        sizes=sizes.to(torch.int32),
    )


def _options(shape: Shape, rows: int, rng: random.Random) -> DecodeOptions:
    names = [*["guarded"] * 5, *["centroid"] * 3, "exact", *["fit"] * (9 if shape.fit else 0)]
    options = DecodeOptions.create(rows, sinks=SINKS, min_clustered=rng.choice([32, 32, 1024]))
    for row in range(rows):
        options.threshold[row] = rng.choice([1e-6, 0.2, 0.5, 0.8, 0.9, 0.95, 0.9999, 1.0])
        options.estimator[row] = estimator_id(rng.choice(names))
        options.dense[row] = rng.random() < 0.05
    return options


def poison(value: Any) -> None:
    """Fills every floating-point buffer of a dataclass, however deep, with NaN."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            value.fill_(torch.nan)
    elif is_dataclass(value):
        for each in fields(value):
            poison(getattr(value, each.name))
