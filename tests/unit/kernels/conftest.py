"""A small serving scene: a KV pool in scattered slots, its index, a batch of queries; the unused is NaN."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tactic.kernels.decode import DecodeResult, decode
from tactic.kernels.dense import dense_decode
from tactic.kernels.index import DecodeOptions, LayerArena, RequestIndex, SegmentTable, units_in
from tactic.kernels.kmeans import kmeans


@dataclass
class Scene:
    q: Tensor
    k_pool: Tensor
    v_pool: Tensor
    req_to_token: Tensor
    request_slots: Tensor
    seq_lens: Tensor
    table: SegmentTable
    arena: LayerArena
    scale: float

    def decode(self, options: DecodeOptions, *, measure: bool = False) -> DecodeResult:
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
            measure=measure,
        )

    def to(self, device: str) -> "Scene":
        """The scene with all its tensors on the device."""
        moved = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                moved[name] = value.to(device)
            elif dataclasses.is_dataclass(value):
                fields = {key: v.to(device) if isinstance(v, Tensor) else v for key, v in vars(value).items()}
                moved[name] = dataclasses.replace(value, **fields)  # type: ignore[type-var]  # an instance
            else:
                moved[name] = value
        return Scene(**moved)

    def dense(self) -> tuple[Tensor, Tensor]:
        return dense_decode(
            self.q,
            self.k_pool,
            self.v_pool,
            self.req_to_token,
            self.request_slots,
            self.seq_lens,
            scale=self.scale,
        )

    def options(self, **settings: object) -> DecodeOptions:
        settings = {"min_clustered": 64, **settings}
        return DecodeOptions.create(self.table.count.shape[0], **settings)  # type: ignore[arg-type]  # free-form

    def index(self, i: int, sinks: int = 0) -> RequestIndex:
        return RequestIndex.gather(self.arena, self.table, int(self.request_slots[i]), sinks=sinks)

    def slot_ids(self, i: int) -> Tensor:
        return self.req_to_token[self.request_slots[i], : self.seq_lens[i]]


def structured_keys(n: int, heads: int, dim: int, generator: torch.Generator) -> Tensor:
    """Keys `[n, heads, dim]` that drift with position and recur in topics, as real ones do."""
    topics = torch.randn(max(1, n // 64), heads, dim, generator=generator) * 1.5
    chosen = torch.randint(len(topics), (max(1, n // 8 + 1),), generator=generator).repeat_interleave(8)[:n]
    return topics[chosen] + 0.6 * torch.randn(n, heads, dim, generator=generator)


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    def make(
        requests: list[tuple[list[int], int]],
        *,
        heads: int = 2,
        group: int = 3,
        dim: int = 16,
        cluster_size: int = 32,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> Scene:
        """`requests`: lengths of the segments and of the tail of each."""
        generator = torch.Generator().manual_seed(seed)
        lengths = [sum(segments) + tail for segments, tail in requests]
        slots = 2 * sum(lengths) + 1
        request_slots = torch.randperm(len(requests) + 2, generator=generator)[: len(requests)]
        units = sum(units_in(n) for segments, _ in requests for n in segments) + 2
        free_slots = iter(torch.randperm(slots, generator=generator)[: sum(lengths)].split(lengths))
        free_unit = 1

        k_pool = torch.full((slots, heads, dim), torch.nan, dtype=dtype)
        v_pool = torch.full_like(k_pool, torch.nan)
        req_to_token = torch.full((len(requests) + 2, max(lengths) + 7), 2**30, dtype=torch.int32)
        table = SegmentTable.create(slots=len(requests) + 2, segments=8)
        arena = LayerArena.create(heads=heads, units=units, head_dim=dim, cluster_size=cluster_size)
        for poisoned in (arena.factors, arena.spread):
            poisoned.fill_(torch.nan)
        for poisoned in (arena.members, arena.starts, arena.sizes, table.unit, table.start, table.length):
            poisoned.fill_(torch.iinfo(poisoned.dtype).max)
        for (segments, _), slot, n in zip(requests, request_slots.tolist(), lengths, strict=True):
            ids = next(free_slots)
            req_to_token[slot, :n] = ids
            keys = structured_keys(n, heads, dim, generator).to(dtype)
            k_pool[ids] = keys
            v_pool[ids] = torch.randn(n, heads, dim, generator=generator).to(dtype)
            begin, row = 0, []
            for length in segments:
                arena.write(free_unit, kmeans(keys[begin : begin + length].transpose(0, 1), cluster_size))
                row.append((free_unit, length))
                begin, free_unit = begin + length, free_unit + units_in(length)
            table.write(slot, row)
        return Scene(
            q=1.5 * torch.randn(len(requests), heads * group, dim, generator=generator).to(dtype),
            k_pool=k_pool,
            v_pool=v_pool,
            req_to_token=req_to_token,
            request_slots=request_slots.to(torch.int32),
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            table=table,
            arena=arena,
            scale=dim**-0.5,
        )

    return make
