"""The engine's pools as the index sees them, with real keys in the slots."""

import random

import torch

from tactic.kernels.index import SegmentTable
from tactic.kernels.kmeans import kmeans
from tactic.workers.index.clock import WriteClock
from tactic.workers.index.memory import IndexShape
from tactic.workers.index.segment import Row, Segment
from tactic.workers.index.store import IndexStore
from tactic.workers.refresh.pools import SharedPools, share_pools
from tactic.workers.sharing import memory

CPU = torch.device("cpu")


class Pools:
    """A KV pool, a request table and an index store; what the engine does to them is done by hand.

    Segments are small (64 positions, one unit each), clusters of 16; everything is seeded.
    """

    SEGMENT, MIN_TOKENS, CLUSTER = 64, 32, 16
    LAYERS, HEADS, DIM = 2, 2, 8

    def __init__(self, *, slots: int = 2048, rows: int = 4, units: int = 32, columns: int = 12) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.random = random.Random(0)
        self.clock = WriteClock(slots, CPU)
        # Keys and values; what no request has written is NaN, so that whoever reads it gives itself away.
        shape = (2, self.LAYERS, slots, self.HEADS, self.DIM)
        self.contents = memory.zeros(shape, torch.float32).fill_(torch.nan)
        self.keys, self.values = self.contents
        self.req_to_token = torch.full((rows, slots), -1, dtype=torch.int32)
        self.generation = [0] * rows
        self.lengths = [0] * rows
        self.free = list(range(1, slots))
        self.random.shuffle(self.free)
        index = IndexShape(self.LAYERS, self.HEADS, self.DIM, self.CLUSTER)
        self.store = IndexStore(
            index.arena(units, CPU),
            SegmentTable.create(slots=rows, segments=columns),
            self.clock,
            layers=self.LAYERS,
            segment_size=self.SEGMENT,
            min_tokens=self.MIN_TOKENS,
        )

    def draw(self, count: int) -> torch.Tensor:
        """New keys and values of `count` positions, [2, L, count, H, d]."""
        return torch.randn(2, self.LAYERS, count, self.HEADS, self.DIM, generator=self.generator)

    def write(self, count: int, contents: torch.Tensor | None = None) -> torch.Tensor:
        """One step of the engine: takes slots and writes keys and values into them, new ones by default."""
        slots = torch.tensor([self.free.pop() for _ in range(count)], dtype=torch.int32)
        self.clock.tick(slots.long())
        self.contents[:, :, slots.long()] = self.draw(count) if contents is None else contents
        return slots

    def drop(self, slots: list[int]) -> None:
        """Frees slots, to be written again at once and in the same order: most easily taken for the old."""
        self.contents[:, :, slots] = torch.nan
        self.free += reversed(slots)

    def admit(self, slot: int, prefix: torch.Tensor | None = None, request_id: str = "request") -> Row:
        """A request takes a request slot, with a prefix that is in the pool already."""
        prefix = torch.empty(0, dtype=torch.int32) if prefix is None else prefix
        self.generation[slot] += 1
        self.lengths[slot] = len(prefix)
        self.req_to_token[slot, : len(prefix)] = prefix
        return self.store.bind(slot, self.generation[slot], request_id, prefix)

    def row(self, slot: int) -> Row:
        row = self.store.row(slot, self.generation[slot])
        assert row is not None
        return row

    def prefill(self, slot: int, count: int, *, complete: bool = True) -> list[Segment]:
        """Writes a prompt's next positions and clusters what they complete."""
        self.decode(slot, count)
        added = self.store.extend(slot, self.row(slot), self.context(slot), complete=complete)
        self.build(added)
        return added

    def decode(self, slot: int, count: int = 1, contents: torch.Tensor | None = None) -> None:
        """Appends positions that are not clustered."""
        start = self.lengths[slot]
        self.req_to_token[slot, start : start + count] = self.write(count, contents)
        self.lengths[slot] += count

    def build(self, segments: list[Segment]) -> None:
        """What the backend does in every layer."""
        for segment in segments:
            keys = self.read_keys(segment.slots)
            for layer, arena in enumerate(self.store.arenas):
                arena.write(segment.unit, kmeans(keys[layer], self.CLUSTER, seed=layer))

    def share(self) -> SharedPools:
        """What a clustering actor needs to work in these pools."""
        return share_pools(list(self.keys), self.store.arena)

    def context(self, slot: int) -> torch.Tensor:
        """Slot ids of all positions of a request."""
        return self.req_to_token[slot, : self.lengths[slot]].clone()

    def slots_of(self, slot: int, start: int, end: int) -> torch.Tensor:
        return self.req_to_token[slot, start:end]

    def read_slots(self, slot: int, start: int, end: int) -> torch.Tensor:
        return self.slots_of(slot, start, end).clone()

    def read_keys(self, slots: torch.Tensor) -> torch.Tensor:
        return self.keys[:, slots.long()].transpose(1, 2)

    def check(self) -> None:
        """The store is sound, and each row's clusters are those of the keys that its positions have now."""
        self.store.check_integrity(deep=True)
        for slot, generation in enumerate(self.generation):
            row = self.store.row(slot, generation)
            for segment in row.segments if row else ():
                self.check_segment(segment, self.read_slots(slot, segment.start, segment.end))

    def check_segment(self, segment: Segment, slots: torch.Tensor) -> None:
        keys = self.read_keys(slots)
        for layer, arena in enumerate(self.store.arenas):
            clusters = arena.read(segment.unit, segment.length)
            for head in range(self.HEADS):
                members = keys[layer, head][clusters.members[head].long()]
                groups = members.split(clusters.sizes[head].tolist())
                means = torch.stack([group.mean(0) for group in groups])
                half_a_code = means.abs().amax(-1, keepdim=True) / 254
                assert bool(((means - clusters.centroids[head]).abs() <= 1.01 * half_a_code).all())
