"""Random schedules of what an engine does, with every invariant checked after each step.

The engine's part is a prefix cache that keeps the slots of finished requests, shares them, and frees them under
its own rules: the store must find what is still there, and never show a row clusters of other keys.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

ROWS = 4
SLOTS = 1600
KEEP_FREE = 600


class Engine(RuleBasedStateMachine):
    """A scheduler with a prefix cache over `Pools`."""

    def __init__(self, make_pools: Callable[..., Any], units: int, columns: int) -> None:
        super().__init__()
        self.pools = make_pools(slots=SLOTS, rows=ROWS, units=units, columns=columns)
        self.cached: list[torch.Tensor] = []
        self.holders: Counter[int] = Counter()
        self.running: set[int] = set()

    def hold(self, slots: torch.Tensor) -> None:
        self.holders.update(slots.tolist())

    def drop(self, slots: torch.Tensor) -> None:
        self.holders.subtract(slots.tolist())
        freed = [slot for slot in slots.tolist() if not self.holders[slot]]
        self.pools.free[:0] = freed[::-1]

    def written(self, slot: int, start: int) -> None:
        self.hold(self.pools.context(slot)[start:])

    @property
    def idle(self) -> list[int]:
        return [slot for slot in range(ROWS) if slot not in self.running]

    @precondition(lambda self: self.idle)
    @rule(source=st.integers(0, 7), share=st.floats(0, 1))
    def admit(self, source: int, share: float) -> None:
        """A request starts on some prefix of what is cached, or on none."""
        slot, prefix = self.idle[0], None
        if source < len(self.cached):
            prefix = self.cached[source]
            prefix = prefix[: round(share * len(prefix))]
            self.hold(prefix)
        row = self.pools.admit(slot, prefix, f"request-{slot}")
        assert row.clustered_length <= (0 if prefix is None else len(prefix))
        self.running.add(slot)

    @precondition(lambda self: self.running and len(self.pools.free) > KEEP_FREE)
    @rule(which=st.integers(0, 3), count=st.integers(1, 200), complete=st.booleans())
    def prefill(self, which: int, count: int, complete: bool) -> None:
        slot = self.pick(which)
        start, clustered = self.pools.lengths[slot], self.pools.row(slot).clustered_length
        added = self.pools.prefill(slot, count, complete=complete)
        self.written(slot, start)
        assert self.pools.row(slot).clustered_length == clustered + sum(s.length for s in added)

    @precondition(lambda self: self.running and len(self.pools.free) > KEEP_FREE)
    @rule(which=st.integers(0, 3), count=st.integers(1, 50))
    def decode(self, which: int, count: int) -> None:
        slot = self.pick(which)
        start = self.pools.lengths[slot]
        self.pools.decode(slot, count)
        self.written(slot, start)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 3), full=st.booleans())
    def refresh(self, which: int, full: bool) -> None:
        """The whole context, or what comes after the first segment, is clustered anew."""
        slot, store = self.pick(which), self.pools.store
        row = self.pools.row(slot)
        replaced = row.segments[0 if full else 1 :]
        start = row.end_of(len(row.segments) - len(replaced))
        slots = self.pools.context(slot)
        cuts = list(store.pieces(start, len(slots), complete=True))
        if not cuts or not store.has_room(row, removed=len(replaced), added=len(cuts)):
            return
        version, read_at = row.version, self.pools.clock.now
        segments = store.allocate(((s, slots[s : s + n]) for s, n in cuts), read_at=read_at)
        if segments is not None:
            self.pools.build(segments)
            store.swap(slot, row, replaced, segments)
            assert row.version == version + 1

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 3), keep=st.booleans())
    def leave(self, which: int, keep: bool) -> None:
        """A request ends or is retracted; the cache keeps its context, or not."""
        slot = self.pick(which)
        context = self.pools.context(slot)
        self.pools.store.release(slot)
        self.running.remove(slot)
        if keep:
            self.cached.append(context)
        else:
            self.drop(context)

    @precondition(lambda self: self.cached)
    @rule(which=st.integers(0, 7))
    def evict(self, which: int) -> None:
        """The cache frees a context; its slots are the next to be written."""
        self.drop(self.cached.pop(which % len(self.cached)))

    def pick(self, which: int) -> int:
        return sorted(self.running)[which % len(self.running)]

    @invariant()
    def sound(self) -> None:
        self.pools.check()


@pytest.mark.parametrize(
    ("units", "columns"), [(40, 16), (6, 16), (12, 3)], ids=["ample", "scarce", "narrow"]
)
def test_no_schedule_breaks_the_store(make_pools: Callable[..., Any], units: int, columns: int) -> None:
    run_state_machine_as_test(
        lambda: Engine(make_pools, units, columns),
        settings=settings(
            max_examples=25,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
