"""How much attention share an index loses until it is refreshed: measured around a sample of refreshes."""

from __future__ import annotations

from tactic.workers.refresh.messages import Drift

SAMPLED = 8
"""One refresh in so many is measured, as a step that is measured reads all keys."""


class DriftMonitor:
    """Says which decode steps to measure, and sums what they found.

    A sample is the share in the step in which a refresh was asked for, and in the first one after its
    hot-swap. A refresh that is dropped leaves none.
    """

    def __init__(self) -> None:
        self._asked = 0
        self._sums = Drift()
        # By request slot: the share before, once it is known.
        self._before: dict[int, float | None] = {}
        self._now: set[int] = set()

    @property
    def sums(self) -> Drift:
        """All samples so far."""
        return self._sums

    def asked(self, slot: int) -> None:
        """A refresh of the request slot is asked for in the present step."""
        if self._asked % SAMPLED == 0:
            self._before[slot] = None
            self._now.add(slot)
        self._asked += 1

    def ended(self, slot: int, *, published: bool) -> None:
        """The refresh of the slot has ended; the present step is the first one after."""
        if published and self._before.get(slot) is not None:
            self._now.add(slot)
        else:
            self.forget(slot)

    def forget(self, slot: int) -> None:
        """The slot's request has left it."""
        self._before.pop(slot, None)
        self._now.discard(slot)

    def wants(self, slot: int) -> bool:
        """Whether the present step of the slot is to be measured."""
        return slot in self._now

    def measured(self, slot: int, share: float) -> None:
        """The step's share, mean over layers and query heads."""
        self._now.remove(slot)
        before = self._before[slot]
        if before is None:
            self._before[slot] = share
            return
        del self._before[slot]
        sums = self._sums
        self._sums = Drift(sums.samples + 1, sums.before + before, sums.after + share)
