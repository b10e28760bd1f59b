"""The scheduler's half of a refresh: when to ask, what to send, whether an answer may be published."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec
import torch

from tactic.workers.config import RefreshConfig
from tactic.workers.index.segment import Row, Segment
from tactic.workers.index.store import IndexStore
from tactic.workers.refresh import messages
from tactic.workers.refresh.compute import check_partition, validated
from tactic.workers.refresh.link import SchedulerLink
from tactic.workers.refresh.messages import Piece, RefreshJob, RefreshReply
from tactic.workers.refresh.pools import SharedPools

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Clock:
    """Decode steps of one bound row since its index was last refreshed, or since a refresh was asked for."""

    generation: int
    due: int
    job_id: int | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """What was asked for, and what must still be true when the answer comes.

    Attributes:
        slot: request slot.
        generation: of the slot.
        start: first position that is clustered anew.
        slots: slot ids of the positions from there on.
        replaced: the segments that give way.
        segments: those that come, in memory that is reserved for them.
        read_at: WriteClock time at which the slots held the keys.
        message: the job as it was sent, without keys.
    """

    slot: int
    generation: int
    start: int
    slots: torch.Tensor
    replaced: tuple[Segment, ...]
    segments: tuple[Segment, ...]
    read_at: int
    message: RefreshJob


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
        pools: where clustering actors of this host find keys and index; None if they can't.
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
        pools: SharedPools | None,
        read_keys: Callable[[torch.Tensor], torch.Tensor],
        read_slots: Callable[[int, int, int], torch.Tensor],
    ) -> None:
        self.store = store
        self.requested = 0
        self.published = 0
        self.in_place = 0
        self.dropped: Counter[str] = Counter()
        self._link = link
        self._config = config
        self._rank = rank
        self._cluster_size = cluster_size
        self._pools = pools
        self._read_keys = read_keys
        self._read_slots = read_slots
        self._sooner = max(1, config.interval // 4)
        self._clocks: dict[int, _Clock] = {}
        self._jobs: dict[int, _Job] = {}
        # Jobs that go out once the device has written the keys that they are about.
        self._waiting: list[tuple[torch.cuda.Event, RefreshJob]] = []
        # By job: memory into which an actor that was given up may still write.
        self._held: dict[int, tuple[Segment, ...]] = {}
        self._ended: list[tuple[int, str]] = []
        self._sends_keys = False

    def step(self, slot: int, row: Row, written: int) -> bool:
        """Counts a decode step of a row with `written` keys; when it is time, asks and returns True."""
        clock = self._clocks.get(slot)
        if clock is None or clock.generation != row.generation:
            clock = self._clocks[slot] = _Clock(row.generation, self._config.interval)
        clock.due -= 1
        if clock.due <= 0 and clock.job_id is None:
            clock.due = self._config.interval
            clock.job_id = self._ask(slot, row, written)
            return clock.job_id is not None
        return False

    def poll(self) -> list[tuple[int, str]]:
        """Publishes the answers that have come; to be called between two steps.

        Returns:
            (request slot, reason) of each job that ended; the reason is empty where it was published.
        """
        while self._waiting and self._waiting[0][0].query():  # type: ignore[no-untyped-call]  # torch
            self._link.send(self._waiting.pop(0)[1])
        for reply, frames in self._link.receive():
            job = self._jobs.get(reply.job_id)
            if job is None:
                if not reply.held:
                    self.store.give_back(self._held.pop(reply.job_id, ()))
            elif not reply.keys_wanted:
                self._end(job, self._publish(job, reply, frames), held=reply.held)
            elif self.store.row(job.slot, job.generation) is None:
                self._end(job, "request_ended")
            else:
                self._send_keys(job, reply.keys_wanted)
        ended, self._ended = self._ended, []
        return ended

    def _ask(self, slot: int, row: Row, written: int) -> int | None:
        kept = self._kept_segments(row)
        start = kept[-1].end if kept else 0
        replaced = row.segments[len(kept) :]
        cuts = self._cuts(row, replaced, start, written)
        if not cuts:
            return None
        slots = self._read_slots(slot, start, cuts[-1][0] + cuts[-1][1])
        read_at = self.store.clock.now
        self.requested += 1
        segments = self.store.reserve(
            ((first, slots[first - start :][:length]) for first, length in cuts), read_at=read_at
        )
        if segments is None:
            self._clocks[slot].due = self._sooner
            self._count(slot, "index_memory")
            return None
        warm = {(s.start, s.length): s.unit for s in replaced}
        message = RefreshJob(
            job_id=self.requested,
            rank=self._rank,
            request_id=row.request_id,
            pieces=tuple(
                Piece(s.start - start, s.length, s.unit, warm.get((s.start, s.length))) for s in segments
            ),
            cluster_size=self._cluster_size,
            seed=self.requested,
            tail=written - row.clustered_length,
            slots=slots.numpy().tobytes(),
            pools=self._pools,
        )
        job = _Job(slot, row.generation, start, slots, tuple(replaced), tuple(segments), read_at, message)
        self._jobs[message.job_id] = job
        if self._pools is None:
            self._send_keys(job, "they can't be shared")
        elif self.store.table.unit.device.type == "cuda":
            written_by_now = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch
            written_by_now.record()
            self._waiting.append((written_by_now, message))
        else:
            self._link.send(message)
        return message.job_id

    def _send_keys(self, job: _Job, reason: str) -> None:
        """Sends a job with its keys. Those that were overwritten since it was made spoil it, at its end."""
        if not self._sends_keys:
            self._sends_keys = True
            logger.info("keys for refreshes are sent to clustering actors: %s", reason)
        message = job.message
        old = [
            self.store.arena.read(piece.warm_unit, piece.length).centroids
            for piece in message.pieces
            if piece.warm_unit is not None
        ]
        specs, frames = messages.pack([self._read_keys(job.slots), *old])
        self._link.send(msgspec.structs.replace(message, tensors=specs), frames)

    def _end(self, job: _Job, reason: str, *, held: bool = False) -> None:
        """A job has come to its end; `reason` is empty where its segments were published."""
        job_id = job.message.job_id
        del self._jobs[job_id]
        if held:
            logger.warning("a clustering actor may still write into the index memory of job %d", job_id)
            self._held[job_id] = job.segments
        elif reason:
            self.store.give_back(job.segments)
        clock = self._clocks.get(job.slot)
        if clock is not None and clock.job_id == job_id:
            clock.job_id = None
            if reason:
                clock.due = min(clock.due, self._sooner)
        self._count(job.slot, reason)

    def _count(self, slot: int, reason: str) -> None:
        if reason:
            self.dropped[reason] += 1
        else:
            self.published += 1
        self._ended.append((slot, reason))

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
        if not self.store.has_room(row, removed=len(job.replaced), added=len(job.segments)):
            return "table_full"
        end = job.start + len(job.slots)
        if not torch.equal(self._read_slots(job.slot, job.start, end), job.slots):
            return "slots_moved"
        device = self.store.table.unit.device
        if int(self.store.clock.stamps(job.slots.to(device, torch.int64)).max()) > job.read_at:
            return "slots_rewritten"
        try:
            self._check_result(job, reply, frames)
        except ValueError as error:
            logger.warning("a clustering actor's result is none: %s", error)
            return "invalid_result"
        self.store.swap(job.slot, row, job.replaced, job.segments)
        if not reply.tensors:
            if not self.in_place:
                logger.info("clustering actors read keys and write clusters in place")
            self.in_place += 1
        return ""

    def _check_result(self, job: _Job, reply: RefreshReply, frames: Sequence[bytes]) -> None:
        """Sees that the job's segments hold clusters; those that were sent are written there first.

        Raises:
            ValueError: they are none.
        """
        arena = self.store.arena
        if reply.tensors:
            none = self._read_keys(job.slots[:0]).flatten(0, 1)  # tells the shape and the dtype of keys
            lengths = [segment.length for segment in job.segments]
            tensors = messages.unpack(reply.tensors, frames)
            for segment, clusters in zip(
                job.segments,
                validated(tensors, lengths, self._cluster_size, none),
                strict=True,
            ):
                arena.write(segment.unit, clusters)
            return
        for i, segment in enumerate(job.segments):
            check_partition(arena.read(segment.unit, segment.length), segment.length, i)
