"""First-fit allocator of contiguous units."""

from __future__ import annotations

from bisect import bisect_left


class ExtentAllocator:
    """Hands out runs of consecutive units from a fixed range and merges what comes back.

    Free runs are few (segments are large), so a sorted list is faster than anything cleverer.
    """

    def __init__(self, units: int) -> None:
        self.units = units
        self._free: list[tuple[int, int]] = [(0, units)] if units else []

    @property
    def free_units(self) -> int:
        """Units that are not allocated."""
        return sum(length for _, length in self._free)

    def allocate(self, length: int) -> int | None:
        """First unit of a run of `length` units, or None where no free run is long enough."""
        for i, (start, free) in enumerate(self._free):
            if free >= length:
                self._free[i : i + 1] = [(start + length, free - length)] if free > length else []
                return start
        return None

    def release(self, start: int, length: int) -> None:
        """Gives a run back. Raises ValueError if part of it is free already or outside the range."""
        i = bisect_left(self._free, (start, 0))
        before = self._free[i - 1] if i else (0, 0)
        after = self._free[i] if i < len(self._free) else (self.units, 0)
        if start < sum(before) or start + length > after[0]:
            raise ValueError(f"units {start}..{start + length} are not allocated")
        first, last = i, i
        if i and sum(before) == start:
            first, start, length = i - 1, before[0], length + before[1]
        if i < len(self._free) and start + length == after[0]:
            last, length = i + 1, length + after[1]
        self._free[first:last] = [(start, length)]

    def runs(self) -> list[tuple[int, int]]:
        """Free runs as (start, length), ascending."""
        return list(self._free)
