"""What the index store keeps of one segment and of one request."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(eq=False, slots=True)
class Segment:
    """A run of positions that was clustered together in every layer and KV head.

    Attributes:
        start: first position.
        length: positions.
        unit: first unit in every layer's arena.
        units: units taken.
        slots: slot ids that hold the keys; int32 [length] on the host.
        built_at: WriteClock time at which those slots held these keys.
        users: rows that refer to it.
        last_used: WriteClock time of the last bind, for eviction in LRU order.
        superseded: others have been put in its place; evicted first.
    """

    start: int
    length: int
    unit: int
    units: int
    slots: torch.Tensor
    built_at: int
    users: int = 0
    last_used: int = 0
    superseded: bool = False

    @property
    def end(self) -> int:
        """First position after the segment."""
        return self.start + self.length


@dataclass(slots=True)
class Row:
    """The index of the request that holds a request slot now.

    Attributes:
        request_id: the engine's id of the request.
        generation: ReqToTokenPool.req_generation of the slot; a slot is valid only with it.
        segments: contiguous from position 0.
        settled: positions below it lie in the slots of the prefix cache, and move no more.
        takeovers: how often the prefix cache has taken positions over, each of which may have moved them.
        version: 1 when bound, one more at each hot-swap.
    """

    request_id: str
    generation: int
    segments: list[Segment] = field(default_factory=list)
    settled: int = 0
    takeovers: int = 0
    version: int = 1

    @property
    def clustered_length(self) -> int:
        """Positions below it are in the index."""
        return self.end_of(len(self.segments))

    def end_of(self, count: int) -> int:
        """First position after the first `count` segments."""
        return self.segments[count - 1].end if count else 0
