"""The index store: which segments exist, who uses them, and where they lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from tactic.kernels.index import LayerArena, SegmentTable, units_in
from tactic.kernels.upload import upload
from tactic.workers.index.clock import WriteClock
from tactic.workers.index.extents import ExtentAllocator
from tactic.workers.index.memory import split_layers
from tactic.workers.index.segment import Row, Segment

MOST_SHORT = 16
"""Segments of a row that are shorter than whole ones; each short turn leaves one."""


@dataclass
class StoreCounters:
    """Counts since start-up."""

    tokens_clustered: int = 0
    tokens_reused: int = 0
    segments_evicted: int = 0
    segments_stale: int = 0
    allocation_failures: int = 0


class IndexStore:
    """Owns the arenas' units, the segments in them and the per-request rows of the segment table.

    A segment outlives its request: it stays while its units are not needed and its slots are not rewritten,
    and is found again by any request whose positions map to the same slots (a later turn, a fork, a shared
    prefix).
    All changes happen between two steps, on the forward stream, so a step sees one version in all layers.

    Args:
        arena: of all layers; its heads are L * H.
        table: rows by request slot; written here and nowhere else.
        clock: stamps of the KV pool's slots.
        layers: L.
        segment_size: most positions in a segment.
        min_tokens: shorter remainders stay in the tail; they are cheaper to read than to index.
    """

    def __init__(
        self,
        arena: LayerArena,
        table: SegmentTable,
        clock: WriteClock,
        *,
        layers: int,
        segment_size: int,
        min_tokens: int,
    ) -> None:
        self.arena = arena
        self.arenas = split_layers(arena, layers)
        self.table = table
        self.clock = clock
        self.segment_size = segment_size
        self.min_tokens = min_tokens
        self.counters = StoreCounters()
        self._extents = ExtentAllocator(arena.units)
        self._rows: dict[int, Row] = {}
        self._reserved: set[Segment] = set()
        # Candidates by (first position, its slot): a handful at most, told apart by their slots.
        self._segments: dict[tuple[int, int], list[Segment]] = {}
        self._max_segments = table.unit.shape[1]

    # Rows ------------------------------------------------------------------------------------------------

    def row(self, slot: int, generation: int) -> Row | None:
        """The row of a request slot, or None if it is not (or no longer) bound to that generation."""
        row = self._rows.get(slot)
        return row if row is not None and row.generation == generation else None

    def bind(self, slot: int, generation: int, request_id: str, slots: torch.Tensor) -> Row:
        """Makes a new row for a request and gives it every segment that its prefix already has.

        Args:
            slot: request slot.
            generation: its generation.
            request_id: the engine's id.
            slots: slot ids of the request's cached prefix, int32 [n] on the host.
        """
        self.release(slot)
        row = Row(request_id, generation, settled=len(slots))
        stamps = self.clock.stamps(slots.to(self.table.unit.device, torch.int64)) if len(slots) else slots
        while self.has_room(row) and (found := self._find(row.clustered_length, slots, stamps)):
            self._hold(found)
            row.segments.append(found)
            self.counters.tokens_reused += found.length
        self._rows[slot] = row
        self._write_row(slot, row)
        return row

    def extend(self, slot: int, row: Row, slots: torch.Tensor, *, complete: bool) -> list[Segment]:
        """Adds segments for the positions that have no index, to be built by the caller in this step.

        Where a row's short segments have become many, all from the first of them on are cut anew, into whole
        ones: else many short turns would fill the table's row, and waste memory. As that is done once in so
        many turns, a position is clustered some three times at most.

        Args:
            slot: request slot of `row`.
            row: the row.
            slots: slot ids of all positions written after this step, int32 [n] on the host.
            complete: the prompt ends here, so the remainder after whole segments is clustered too.

        Returns:
            The new segments, contiguous up to the row's new clustered length. Empty where there is too little
            to cluster, or no memory: the tail is then attended exactly.
        """
        added = self._cut_anew(row, slots) if complete else None
        if added is None:
            added = self._append(row, slots, complete=complete)
        if added:
            self._write_row(slot, row)
        return added

    def _append(self, row: Row, slots: torch.Tensor, *, complete: bool) -> list[Segment]:
        """Adds as many segments as there is memory for."""
        added: list[Segment] = []
        for start, length in self.pieces(row.clustered_length, len(slots), complete=complete):
            if not self.has_room(row):
                break
            segment = self._allocate(start, slots[start : start + length], self.clock.now)
            if segment is None:
                break
            self._replace(row, slice(len(row.segments), None), [segment])
            added.append(segment)
        return added

    def _cut_anew(self, row: Row, slots: torch.Tensor) -> list[Segment] | None:
        """Cuts all from the first short segment on anew; None if these are few, or there is no memory."""
        short = [i for i, segment in enumerate(row.segments) if self.is_short(segment)]
        cuts = list(self.pieces(row.clustered_length, len(slots), complete=True))
        more = sum(length < self.segment_size for _, length in cuts)
        few = len(short) + more <= MOST_SHORT and self.has_room(row, added=len(cuts))
        if few or not short or not cuts:
            return None
        pieces = list(self.pieces(row.end_of(short[0]), len(slots), complete=True))
        if not self.has_room(row, removed=len(row.segments) - short[0], added=len(pieces)):
            return None
        added = self._allocate_all(((start, slots[start : start + n]) for start, n in pieces), self.clock.now)
        if added is not None:
            self._replace(row, slice(short[0], None), added)
        return added

    def is_short(self, segment: Segment) -> bool:
        """Whether a segment is no whole one."""
        return segment.length < self.segment_size

    def _replace(self, row: Row, where: slice, added: Sequence[Segment]) -> None:
        """Puts built segments, or such as are built in this step, in the place of some of a row's."""
        for segment in row.segments[where]:
            segment.users -= 1
            segment.superseded = True
        row.segments[where] = added
        for segment in added:
            self._keep(segment)
            self._hold(segment)
            self.counters.tokens_clustered += segment.length

    def settle(self, row: Row, slots: torch.Tensor) -> None:
        """The prefix cache has taken the row's next positions over, in slots that may be others'.

        It keeps one copy of what several requests computed at a time, so the segments go where it is.

        Args:
            row: the row.
            slots: slot ids of the positions from `row.settled` on, int32 [n] on the host.
        """
        start = row.settled
        row.settled += len(slots)
        for segment in row.segments:
            first, end = max(segment.start, start), min(segment.end, row.settled)
            if first >= end:
                continue
            there = slots[first - start : end - start]
            here = slice(first - segment.start, end - segment.start)
            if not torch.equal(segment.slots[here], there):
                self._forget(segment)
                segment.slots[here] = there
                segment.built_at = self.clock.now
                self._keep(segment)

    def pieces(self, start: int, end: int, *, complete: bool) -> Iterator[tuple[int, int]]:
        """Cuts the positions start … end-1 into (start, length) of segments; see `extend`."""
        while end - start >= self.segment_size:
            yield start, self.segment_size
            start += self.segment_size
        if complete and end - start >= self.min_tokens:
            yield start, end - start

    def reserve(self, pieces: Iterable[tuple[int, torch.Tensor]], *, read_at: int) -> list[Segment] | None:
        """Sets memory aside for segments of keys read at `read_at`, to be built by someone else meanwhile.

        Nobody finds them before `swap` shows them, or `give_back` ends it. What is in their memory does not
        pass for an index until all of it is written.

        Args:
            pieces: first position and slot ids, int32 [n] on the host, of each.
            read_at: WriteClock time at which the slots hold the keys.

        Returns:
            The segments, all or none.
        """
        segments = self._allocate_all(pieces, read_at)
        for segment in segments or ():
            self._reserved.add(segment)
            self.arena.blank(segment.unit, segment.length)
        return segments

    def give_back(self, segments: Iterable[Segment]) -> None:
        """Frees the memory of reserved segments, which nobody writes any more."""
        for segment in segments:
            self._reserved.remove(segment)
            self._extents.release(segment.unit, segment.units)

    def has_room(self, row: Row, *, removed: int = 0, added: int = 1) -> bool:
        """Whether the table can show the row after such a change."""
        return len(row.segments) - removed + added <= self._max_segments

    def swap(self, slot: int, row: Row, replaced: Sequence[Segment], segments: Sequence[Segment]) -> None:
        """Hot-swaps: puts reserved, now built `segments` in the place of the row's `replaced` ones.

        That is one new version of the row.

        Raises:
            ValueError: the table has no room for so many segments in a row; see `has_room`.
        """
        first = row.segments.index(replaced[0]) if replaced else len(row.segments)
        if not self.has_room(row, removed=len(replaced), added=len(segments)):
            raise ValueError(f"a row holds at most {self._max_segments} segments")
        for segment in segments:
            self._reserved.remove(segment)
        self._replace(row, slice(first, first + len(replaced)), segments)
        row.version += 1
        self._write_row(slot, row)

    def release(self, slot: int) -> None:
        """The request slot is free: its row goes, its segments stay for whoever has the same prefix."""
        row = self._rows.pop(slot, None)
        if row is not None:
            for segment in row.segments:
                segment.users -= 1
            self.table.count[slot].zero_()

    # Memory ----------------------------------------------------------------------------------------------

    @property
    def segments(self) -> list[Segment]:
        """All segments, in use or kept."""
        return [segment for group in self._segments.values() for segment in group]

    @property
    def units_used(self) -> int:
        """Units of each arena that hold segments, or are reserved."""
        return self._extents.units - self._extents.free_units

    def _allocate(self, start: int, slots: torch.Tensor, built_at: int) -> Segment | None:
        units = units_in(len(slots))
        unit = self._extents.allocate(units)
        if unit is None:
            self._reclaim(units)
            unit = self._extents.allocate(units)
        if unit is None:
            self.counters.allocation_failures += 1
            return None
        return Segment(start, len(slots), unit, units, slots.clone(), built_at)

    def _allocate_all(
        self, pieces: Iterable[tuple[int, torch.Tensor]], built_at: int
    ) -> list[Segment] | None:
        """Segments with such first positions and slot ids; all or none."""
        segments: list[Segment] = []
        for start, slots in pieces:
            segment = self._allocate(start, slots, built_at)
            if segment is None:
                for other in segments:
                    self._extents.release(other.unit, other.units)
                return None
            segments.append(segment)
        return segments

    def _keep(self, segment: Segment) -> None:
        """Lets requests on the same prefix find a segment."""
        self._segments.setdefault((segment.start, int(segment.slots[0])), []).append(segment)

    def _forget(self, segment: Segment) -> None:
        """Undoes `_keep`."""
        key = (segment.start, int(segment.slots[0]))
        group = self._segments[key]
        group.remove(segment)
        if not group:
            del self._segments[key]

    def _reclaim(self, units: int) -> None:
        """Frees unused segments until `units` are free in one run: stale, then superseded, then oldest."""
        unused = [segment for segment in self.segments if segment.users == 0]
        stale = self._stale(unused)
        order = sorted(unused, key=lambda s: (s not in stale, not s.superseded, s.last_used))
        for segment in order:
            if segment not in stale and any(length >= units for _, length in self._extents.runs()):
                return
            self.counters.segments_stale += segment in stale
            self.counters.segments_evicted += segment not in stale
            self._discard(segment)

    def _discard(self, segment: Segment) -> None:
        self._forget(segment)
        self._extents.release(segment.unit, segment.units)

    def _stale(self, segments: Sequence[Segment]) -> set[Segment]:
        """Those whose slots have been written since; the device is read once for all of them."""
        if not segments:
            return set()
        slots = torch.cat([segment.slots for segment in segments])
        stamps = self.clock.stamps(upload(slots, self.table.unit.device, torch.int64))
        each = torch.split(stamps, [segment.length for segment in segments])
        return {s for s, own in zip(segments, each, strict=True) if int(own.max()) > s.built_at}

    def _hold(self, segment: Segment) -> None:
        segment.users += 1
        segment.last_used = self.clock.now

    def _find(self, start: int, slots: torch.Tensor, stamps: torch.Tensor) -> Segment | None:
        """The longest valid segment that begins at `start` and lies within the prefix on `slots`."""
        if start >= len(slots):
            return None
        fitting = (
            segment
            for segment in self._segments.get((start, int(slots[start])), ())
            if segment.end <= len(slots)
            and torch.equal(segment.slots, slots[start : segment.end])
            and int(stamps[start : segment.end].max()) <= segment.built_at
        )
        return max(fitting, key=lambda segment: (segment.length, not segment.superseded), default=None)

    def _write_row(self, slot: int, row: Row) -> None:
        self.table.write(slot, [(segment.unit, segment.length) for segment in row.segments])

    # Integrity -------------------------------------------------------------------------------------------

    def check_integrity(self, *, deep: bool = False) -> None:
        """Raises AssertionError, with what is wrong, unless every invariant holds.

        Args:
            deep: also read the arenas: in every layer and head, each position is in exactly one cluster.
        """
        segments = self.segments
        held = [(s.unit, s.units) for s in (*segments, *self._reserved)]
        taken = sorted(held + self._extents.runs())
        position = 0
        for unit, length in taken:
            assert unit == position, f"units {position}..{unit} are lost or held twice"
            position = unit + length
        assert position == self._extents.units, f"units {position}..{self._extents.units} are lost"

        users = Counter(id(segment) for row in self._rows.values() for segment in row.segments)
        for segment in segments:
            assert segment.users == users[id(segment)], (
                f"segment at {segment.start}: {segment.users} users counted"
            )
        known = {id(segment) for segment in segments}
        table = self.table
        columns = [column.cpu() for column in (table.unit, table.start, table.length)]
        count = table.count.cpu()
        for slot, row in self._rows.items():
            end = 0
            for i, segment in enumerate(row.segments):
                assert id(segment) in known, f"row {slot} refers to a freed segment"
                assert segment.start == end, (
                    f"row {slot}: segment {i} starts at {segment.start}, not at {end}"
                )
                shown = [int(column[slot, i]) for column in columns]
                assert shown == [segment.unit, segment.start, segment.length], (
                    f"row {slot}: table differs at {i}"
                )
                end = segment.end
            assert int(count[slot]) == len(row.segments), f"row {slot}: table has another count"
        bound = torch.zeros(len(count), dtype=torch.bool)
        bound[list(self._rows)] = True
        assert not bool((count[~bound] != 0).any()), "the table shows segments of a free request slot"
        if deep:
            for segment in segments:
                for layer, arena in enumerate(self.arenas):
                    members = arena.read(segment.unit, segment.length).members.sort(dim=-1).values
                    whole = torch.arange(segment.length, dtype=members.dtype, device=members.device)
                    assert bool((members == whole).all()), (
                        f"segment at {segment.start}, layer {layer}: not a partition"
                    )
