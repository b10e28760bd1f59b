"""Progress on stderr, and whether there is time for more."""

from __future__ import annotations

import sys
import time
from collections.abc import Hashable

QUIET_S = 5.0


class Progress:
    """Counts jobs of several kinds; jobs of one kind take about the same time.

    Args:
        total: jobs.
        started: `time.monotonic()` when the run began.
        limit: seconds from then on, after which no job is to run; None for no limit.
    """

    def __init__(self, total: int, *, started: float, limit: float | None = None) -> None:
        self.total = total
        self.done = 0
        self._started = started
        self._limit = limit
        self._longest: dict[Hashable, float] = {}
        self._said = 0.0
        self._kind: Hashable = None
        self._begun = started

    def begin(self, kind: Hashable, what: str) -> bool:
        """Before a job: says what comes, at most every few seconds. False if it would end too late."""
        now = time.monotonic()
        elapsed = now - self._started
        if self._limit is not None and elapsed + self._longest.get(kind, 0.0) > self._limit:
            self._say(f"stopped after {self.done} of {self.total}: {self._limit:.0f} s are over")
            return False
        if now - self._said >= QUIET_S:
            self._say(f"{self.done} of {self.total}, {elapsed:.0f} s: {what}")
            self._said = now
        self._kind, self._begun = kind, now
        return True

    def end(self) -> None:
        """After a job."""
        self.done += 1
        taken = time.monotonic() - self._begun
        self._longest[self._kind] = max(taken, self._longest.get(self._kind, 0.0))

    @staticmethod
    def _say(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)
