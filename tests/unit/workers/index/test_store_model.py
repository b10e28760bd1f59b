"""Random schedules of what an engine does, with every invariant checked after each step.

The engine's part is a prefix cache that keeps the slots of finished requests, shares them, and frees them
under its own rules: the store must find what is still there, and never show a row clusters of other keys.
"""

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

ROWS, SLOTS, KEEP_FREE = 4, 1600, 500


class Engine:
    """A scheduler with a prefix cache over `Pools`, whose every move is drawn from a seed."""

    MOVES = ("admit", "admit", "prefill", "prefill", "decode", "refresh", "leave", "leave", "evict")

    def __init__(self, pools: Any, seed: int) -> None:
        self.pools = pools
        self.random = random.Random(seed)
        self.cached: list[torch.Tensor] = []
        self.holders: Counter[int] = Counter()
        self.running: list[int] = []
        self.seen: Counter[str] = Counter()

    def move(self) -> None:
        getattr(self, self.random.choice(self.MOVES))()
        self.pools.check()

    def admit(self) -> None:
        """A request starts on some prefix of what is cached, or on none."""
        idle = [slot for slot in range(ROWS) if slot not in self.running]
        if not idle:
            return
        slot, prefix = self.random.choice(idle), None
        if self.cached and self.random.random() < 0.8:
            prefix = self.random.choice(self.cached)
            prefix = prefix[: self.random.choice([len(prefix), self.random.randint(0, len(prefix))])]
            self.holders.update(prefix.tolist())
        row = self.pools.admit(slot, prefix, f"request-{slot}")
        assert row.clustered_length <= (0 if prefix is None else len(prefix))
        self.seen["reused"] += bool(row.segments)
        self.running.append(slot)

    def prefill(self) -> None:
        if not self.running or len(self.pools.free) < KEEP_FREE:
            return
        slot = self.random.choice(self.running)
        start, row = self.pools.lengths[slot], self.pools.row(slot)
        before = row.clustered_length
        added = self.pools.prefill(slot, self.random.randint(1, 200), complete=self.random.random() < 0.6)
        self.holders.update(self.pools.context(slot)[start:].tolist())
        assert row.clustered_length == (added[-1].end if added else before)

    def decode(self) -> None:
        if not self.running or len(self.pools.free) < KEEP_FREE:
            return
        slot = self.random.choice(self.running)
        start = self.pools.lengths[slot]
        self.pools.decode(slot, self.random.randint(1, 50))
        self.holders.update(self.pools.context(slot)[start:].tolist())

    def refresh(self) -> None:
        """The whole context, or what comes after the first segment, is clustered anew."""
        if not self.running:
            return
        slot, store = self.random.choice(self.running), self.pools.store
        row = self.pools.row(slot)
        replaced = row.segments[self.random.randint(0, 1) :]
        slots = self.pools.context(slot)
        start = row.end_of(len(row.segments) - len(replaced))
        cuts = list(store.pieces(start, len(slots), complete=True))
        if not cuts or not store.has_room(row, removed=len(replaced), added=len(cuts)):
            return
        version = row.version
        pieces = ((s, slots[s : s + n]) for s, n in cuts)
        segments = store.reserve(pieces, read_at=self.pools.clock.now)
        if segments is not None:
            self.pools.build(segments)
            store.swap(slot, row, replaced, segments)
            assert row.version == version + 1
            self.seen["swapped"] += 1

    def leave(self) -> None:
        """A request ends or is retracted; the cache keeps its context, or not."""
        if not self.running:
            return
        slot = self.running.pop(self.random.randrange(len(self.running)))
        context = self.pools.context(slot)
        self.pools.store.release(slot)
        if self.random.random() < 0.7:
            self.cached.append(context)
        else:
            self.drop(context)

    def evict(self) -> None:
        """The cache frees a context."""
        if self.cached:
            self.drop(self.cached.pop(self.random.randrange(len(self.cached))))

    def drop(self, slots: torch.Tensor) -> None:
        self.holders.subtract(slots.tolist())
        self.pools.drop([slot for slot in slots.tolist() if not self.holders[slot]])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("units", "columns"), [(40, 16), (6, 16), (20, 3)], ids=["ample", "scarce", "narrow"]
)
def test_no_schedule_breaks_the_store(
    make_pools: Callable[..., Any], units: int, columns: int, seed: int
) -> None:
    engine = Engine(make_pools(slots=SLOTS, rows=ROWS, units=units, columns=columns), seed)
    for _ in range(300):
        engine.move()
    assert min(engine.seen["reused"], engine.seen["swapped"]) > 0
    counters = engine.pools.store.counters
    assert counters.segments_evicted + counters.segments_stale > 0 or units > 6
