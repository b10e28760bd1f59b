"""The scheduler's half of a refresh: when to ask, what to send, whether an answer may be published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tactic.kernels.index import Clusters
from tactic.workers.config import RefreshConfig
from tactic.workers.index.segment import Row, Segment
from tactic.workers.index.store import IndexStore
from tactic.workers.refresh import messages
from tactic.workers.refresh.compute import validated
from tactic.workers.refresh.link import SchedulerLink
from tactic.workers.refresh.messages import Piece, RefreshJob, RefreshReply


@dataclass(slots=True)
class _Clock:
    """Decode steps of one bound row since its index was last refreshed, or since a refresh was asked for."""

    generation: int
    due: int
    job_id: int | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """What must still be true when the answer comes."""

    slot: int
    generation: int
    start: int
    slots: torch.Tensor
    replaced: tuple[Segment, ...]
    lengths: tuple[int, ...]
    read_at: int


class Refresher:
    """Asks for k-means off the critical path and hot-swaps the results between two steps.

    A refresh never blocks a step and never fails a request: what cannot be published is dropped and counted
    by reason, the old index stays valid, and the tail grows until the next attempt.

    Args:
        store: the index.
        link: to the decode worker.
        config: interval and scope.
        rank: tensor-parallel rank; ranks refresh on their own heads.
        cluster_size: average members of a cluster.
        read_keys: keys of slot ids [n] as [L, H, n, d].
        read_slots: slot ids of positions start … end-1 of a request slot, int32 on the host.
    """

    def __init__(
        self,
        store: IndexStore,
        link: SchedulerLink,
        config: RefreshConfig,
        *,
        rank: int,
        cluster_size: int,
        read_keys: Callable[[torch.Tensor], torch.Tensor],
        read_slots: Callable[[int, int, int], torch.Tensor],
    ) -> None:
        self.store = store
        self.requested = 0
        self.published = 0
        self.dropped: Counter[str] = Counter()
        self._link = link
        self._config = config
        self._rank = rank
        self._cluster_size = cluster_size
        self._read_keys = read_keys
        self._read_slots = read_slots
        self._clocks: dict[int, _Clock] = {}
        self._jobs: dict[int, _Job] = {}

    def step(self, slot: int, row: Row, written: int) -> bool:
        """Counts a decode step of a row with `written` keys; when it is time, asks and returns True."""
        clock = self._clocks.get(slot)
        if clock is None or clock.generation != row.generation:
            clock = self._clocks[slot] = _Clock(row.generation, self._config.interval)
        clock.due -= 1
        if clock.due <= 0 and clock.job_id is None:
            clock.job_id = self._ask(slot, row, written)
            clock.due = self._config.interval
            return clock.job_id is not None
        return False

    def poll(self) -> list[tuple[int, str]]:
        """Publishes the answers that have come; to be called between two steps.

        Returns:
            (request slot, reason) of each job that ended; the reason is empty where it was published.
        """
        ended = []
        for reply, frames in self._link.receive():
            job = self._jobs.pop(reply.job_id, None)
            if job is None:
                continue
            reason = self._publish(job, reply, frames)
            if reason:
                self.dropped[reason] += 1
            else:
                self.published += 1
            clock = self._clocks.get(job.slot)
            if clock is not None and clock.job_id == reply.job_id:
                clock.job_id = None
                if reason:
                    clock.due = min(clock.due, max(1, self._config.interval // 4))
            ended.append((job.slot, reason))
        return ended

    def _ask(self, slot: int, row: Row, written: int) -> int | None:
        kept = self._kept_segments(row)
        start = kept[-1].end if kept else 0
        replaced = row.segments[len(kept) :]
        cuts = self._cuts(row, replaced, start, written)
        if not cuts:
            return None
        end = cuts[-1][0] + cuts[-1][1]
        slots = self._read_slots(slot, start, end)
        tensors = [self._read_keys(slots)]
        pieces = []
        for first, length in cuts:
            old = next((s for s in replaced if (s.start, s.length) == (first, length)), None)
            pieces.append(Piece(first - start, length, warm=old is not None))
            if old is not None:
                tensors.append(
                    torch.stack([a.read(old.unit, old.length).centroids for a in self.store.arenas])
                )
        self.requested += 1
        job_id = self.requested
        specs, frames = messages.pack(tensors)
        job = RefreshJob(
            job_id,
            self._rank,
            tuple(pieces),
            self._cluster_size,
            job_id,
            written - row.clustered_length,
            specs,
        )
        self._link.send(job, frames)
        self._jobs[job_id] = _Job(
            slot,
            row.generation,
            start,
            slots,
            tuple(replaced),
            tuple(length for _, length in cuts),
            self.store.clock.now,
        )
        return job_id

    def _kept_segments(self, row: Row) -> list[Segment]:
        """The segments before what is clustered anew: all up to the open run at the end, or none."""
        if self._config.scope == "full":
            return []
        kept = len(row.segments)
        while kept and row.segments[kept - 1].length < self.store.segment_size:
            kept -= 1
        return row.segments[:kept]

    def _cuts(self, row: Row, replaced: list[Segment], start: int, end: int) -> list[tuple[int, int]]:
        """(First position, length) of the new segments. Whole old ones keep their borders, to start warm."""
        cuts = []
        for segment in replaced:
            if segment.start == start and segment.length == self.store.segment_size:
                cuts.append((start, segment.length))
                start = segment.end
        if end <= row.clustered_length:
            return []
        return cuts + list(self.store.pieces(start, end, complete=True))

    def _publish(self, job: _Job, reply: RefreshReply, frames: Sequence[bytes]) -> str:
        """Swaps a result in; the reason if it must not be."""
        if reply.error:
            return reply.error
        row = self.store.row(job.slot, job.generation)
        if row is None:
            return "request_ended"
        kept = len(row.segments) - len(job.replaced)
        if tuple(row.segments[kept:]) != job.replaced or row.end_of(kept) != job.start:
            return "index_changed"
        if not self.store.has_room(row, removed=len(job.replaced), added=len(job.lengths)):
            return "table_full"
        end = job.start + len(job.slots)
        if not torch.equal(self._read_slots(job.slot, job.start, end), job.slots):
            return "slots_moved"
        device = self.store.table.unit.device
        if int(self.store.clock.stamps(job.slots.to(device, torch.int64)).max()) > job.read_at:
            return "slots_rewritten"
        arenas = self.store.arenas
        heads, _, dim = arenas[0].centroids.shape
        like = arenas[0].centroids.new_empty(len(arenas) * heads, 0, dim)
        try:
            clusters = validated(
                messages.unpack(reply.tensors, frames), job.lengths, self._cluster_size, like
            )
        except ValueError:
            return "invalid_result"
        starts = torch.tensor((0, *job.lengths)).cumsum(0).tolist()
        segments = self.store.allocate(
            (
                (job.start + first, job.slots[first : first + length])
                for first, length in zip(starts, job.lengths, strict=False)
            ),
            read_at=job.read_at,
        )
        if segments is None:
            return "index_memory"
        for segment, result in zip(segments, clusters, strict=True):
            self._write(segment, result)
        self.store.swap(job.slot, row, job.replaced, segments)
        return ""

    def _write(self, segment: Segment, clusters: Clusters) -> None:
        for arena, part in zip(self.store.arenas, clusters.split(len(self.store.arenas)), strict=True):
            arena.write(segment.unit, part)
