"""The scheduler's half of a refresh: when to ask, what to send, whether an answer may be published."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import torch

from tactic.kernels.index import Clusters
from tactic.kernels.upload import upload
from tactic.workers.config import RefreshConfig
from tactic.workers.index.segment import Row, Segment
from tactic.workers.index.store import IndexStore
from tactic.workers.refresh import messages
from tactic.workers.refresh.compute import flatten
from tactic.workers.refresh.deferred import Deferred
from tactic.workers.refresh.link import SchedulerLink
from tactic.workers.refresh.messages import Piece, RefreshJob, RefreshReply
from tactic.workers.refresh.pools import SharedPools
from tactic.workers.refresh.verify import describe, faults, unflatten

logger = logging.getLogger(__name__)

MOST_SEGMENTS = 2
"""Whole segments that a job may come to (`tail`): what takes longer than its timeout would never be done."""


@dataclass(slots=True)
class _Clock:
    """Decode steps of one bound row since its index was last refreshed, or since a refresh was asked for."""

    generation: int
    due: int
    job_id: int | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to be clustered, and what must still be true when that has been done.

    Attributes:
        job_id: of the job.
        slot: request slot.
        generation: of the slot.
        start: first position that is clustered anew.
        cuts: first position and length of each segment that comes.
        replaced: the segments that give way.
        tail: positions that are not clustered.
        read_at: WriteClock time at which the slots hold the keys.
        rest: positions after these are left to the next job.
    """

    job_id: int
    slot: int
    generation: int
    start: int
    cuts: tuple[tuple[int, int], ...]
    replaced: tuple[Segment, ...]
    tail: int
    read_at: int
    rest: bool

    @property
    def end(self) -> int:
        """First position after those that are clustered anew."""
        first, length = self.cuts[-1]
        return first + length


@dataclass(frozen=True, slots=True)
class _Job:
    """A plan that has memory.

    Attributes:
        plan: what is to be clustered.
        slots: slot ids of its positions, int32 [n] on the host.
        segments: those that come, in memory that is reserved for them.
        message: the job as it is sent, without keys.
    """

    plan: _Plan
    slots: torch.Tensor
    segments: tuple[Segment, ...]
    message: RefreshJob


class Ended(NamedTuple):
    """A refresh that came to its end; `reason` is empty where it was published.

    The request slot may have another generation by now.
    """

    slot: int
    generation: int
    reason: str


class Refresher:
    """Asks for k-means off the critical path and hot-swaps the results between two steps.

    A refresh never blocks a step and never fails a request: what is read from the device is waited for by
    no one, and results are verified beside the steps. What cannot be published is dropped and counted by
    reason, the old index stays valid, and the tail grows until the next attempt.

    Args:
        store: the index.
        link: to the decode worker.
        config: interval and scope.
        rank: tensor-parallel rank; ranks refresh on their own heads.
        cluster_size: average members of a cluster.
        pools: where clustering actors of this host find keys and index; None if they can't.
        read_keys: keys of slot ids [n] as [L, H, n, d].
        slots_of: slot ids of positions start … end-1 of a request slot, int32 [n] on the device.
        deferred: what waits for the device.
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
        slots_of: Callable[[int, int, int], torch.Tensor],
        deferred: Deferred,
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
        self._slots_of = slots_of
        self._sooner = max(1, config.interval // 4)
        self._clocks: dict[int, _Clock] = {}
        # Until they are answered; then what `_deferred` waits for has them.
        self._jobs: dict[int, _Job] = {}
        # By job: memory into which an actor that was given up may still write.
        self._held: dict[int, tuple[Segment, ...]] = {}
        self._ended: list[Ended] = []
        self._sends_keys = False
        self._device = store.table.unit.device
        self._deferred = deferred

    def step(self, slot: int, row: Row, written: int) -> bool:
        """Counts a decode step of a row with `written` keys; when it is time, asks and returns True."""
        clock = self._clocks.get(slot)
        if clock is None or clock.generation != row.generation:
            clock = self._clocks[slot] = _Clock(row.generation, self._config.interval)
        clock.due -= 1
        if clock.due <= 0 and clock.job_id is None:
            clock.due = self._config.interval
            plan = self._plan(slot, row, written)
            if plan is not None:
                clock.job_id = plan.job_id
                slots = self._slots_of(slot, plan.start, plan.end)
                self._deferred.when_here([slots], lambda values: self._reserve(plan, *values))
                return True
        return False

    def poll(self) -> list[Ended]:
        """Publishes the answers that have come, and tells what ended; to be called between two steps."""
        self._deferred.advance()
        for reply, frames in self._link.receive():
            job = self._jobs.pop(reply.job_id, None)
            if job is None:
                if not reply.held:
                    self.store.give_back(self._held.pop(reply.job_id, ()))
            elif reply.error:
                self._end(job, reply.error, held=reply.held)
            elif reason := self._outdated(job):
                self._end(job, reason)
            elif reply.keys_wanted:
                self._send_keys(job, reply.keys_wanted)
            else:
                self._verify(job, reply, frames)
        ended, self._ended = self._ended, []
        return ended

    # Asking ----------------------------------------------------------------------------------------------

    def _plan(self, slot: int, row: Row, written: int) -> _Plan | None:
        """What is to be clustered now of a row with `written` keys; None if there is too little."""
        first = self._first_open(row)
        start, replaced = row.end_of(first), row.segments[first:]
        if written <= row.clustered_length:
            return None
        replaced, end = self._fitting(replaced, start, written)
        cuts = self._cuts(replaced, start, end)
        if not cuts:
            return None
        self.requested += 1
        return _Plan(
            job_id=self.requested,
            slot=slot,
            generation=row.generation,
            start=start,
            cuts=tuple(cuts),
            replaced=tuple(replaced),
            tail=written - row.clustered_length,
            read_at=self.store.clock.now,
            rest=end < written,
        )

    def _reserve(self, plan: _Plan, slots: torch.Tensor) -> None:
        """Sets memory aside, then sends the job."""
        row = self.store.row(plan.slot, plan.generation)
        if row is None:
            self._close(plan, "request_ended")
            return
        segments = self.store.reserve(
            ((first, slots[first - plan.start :][:length]) for first, length in plan.cuts),
            read_at=plan.read_at,
        )
        if segments is None:
            self._close(plan, "index_memory")
            return
        warm = {(s.start, s.length): s.unit for s in plan.replaced}
        message = RefreshJob(
            job_id=plan.job_id,
            rank=self._rank,
            request_id=row.request_id,
            pieces=tuple(
                Piece(s.start - plan.start, s.length, s.unit, warm.get((s.start, s.length))) for s in segments
            ),
            cluster_size=self._cluster_size,
            seed=plan.job_id,
            tail=plan.tail,
            slots=slots.numpy().tobytes(),
            pools=self._pools,
        )
        job = _Job(plan, slots, tuple(segments), message)
        if self._pools is None:
            self._send_keys(job, "they can't be shared")
        else:
            self._jobs[plan.job_id] = job
            # No sooner than the reserved memory has been blanked.
            self._deferred.when_here([], lambda _: self._link.send(message))

    def _send_keys(self, job: _Job, reason: str) -> None:
        """Sends a job with its keys. Those that were overwritten since it was made spoil it, at its end."""
        if not self._sends_keys:
            self._sends_keys = True
            logger.info("keys for refreshes are sent to clustering actors: %s", reason)
        message = job.message

        def send(values: list[torch.Tensor]) -> None:
            specs, frames = messages.pack(values)
            self._link.send(msgspec.structs.replace(message, tensors=specs), frames)

        with self._deferred.aside():
            old = [
                self.store.arena.read(piece.warm_unit, piece.length).centroids
                for piece in message.pieces
                if piece.warm_unit is not None
            ]
            try:
                keys = self._read_keys(job.slots)
            except torch.OutOfMemoryError:
                logger.warning("no memory to read the keys of %d positions for a refresh", len(job.slots))
                self._end(job, "keys_memory")
                return
            self._jobs[message.job_id] = job
            self._deferred.when_here([keys, *old], send)

    # Ending ----------------------------------------------------------------------------------------------

    def _end(self, job: _Job, reason: str, *, held: bool = False) -> None:
        """A job has come to its end; `reason` is empty where its segments were published."""
        if held:
            job_id = job.plan.job_id
            logger.warning("a clustering actor may still write into the index memory of job %d", job_id)
            self._held[job_id] = job.segments
        elif reason:
            self.store.give_back(job.segments)
        self._close(job.plan, reason)

    def _close(self, plan: _Plan, reason: str) -> None:
        """A plan has been carried out or dropped: its row may ask again."""
        clock = self._clocks.get(plan.slot)
        if clock is not None and clock.job_id == plan.job_id:
            clock.job_id = None
            if reason or plan.rest:
                clock.due = min(clock.due, self._sooner)
        if reason:
            self.dropped[reason] += 1
        else:
            self.published += 1
        self._ended.append(Ended(plan.slot, plan.generation, reason))

    def _first_open(self, row: Row) -> int:
        """Index of the first segment that is clustered anew: of the open run at the end, or of all."""
        if self._config.scope == "full":
            return 0
        first = len(row.segments)
        while first and self.store.is_short(row.segments[first - 1]):
            first -= 1
        return first

    def _fitting(self, replaced: list[Segment], start: int, end: int) -> tuple[list[Segment], int]:
        """Those of the segments from `start` on that one job replaces, and the end of its positions.

        Where not all short ones fit, those that do are longer together than a whole one: each job makes one.
        """
        most = start + MOST_SEGMENTS * self.store.segment_size
        if self._config.scope == "full" or end <= most:
            return replaced, end
        fitting = [segment for segment in replaced if segment.end <= most]
        return (fitting, most) if len(fitting) == len(replaced) else (fitting, fitting[-1].end)

    def _cuts(self, replaced: Sequence[Segment], start: int, end: int) -> list[tuple[int, int]]:
        """(First position, length) of the new segments. Whole old ones keep their borders, to start warm."""
        cuts = []
        for segment in replaced:
            if segment.start == start and not self.store.is_short(segment):
                cuts.append((start, segment.length))
                start = segment.end
        cuts += self.store.pieces(start, end, complete=True)
        covered = cuts[-1][0] + cuts[-1][1] if cuts else start
        if replaced and covered < end == replaced[-1].end:
            # Too short to be worth it, but more segments of the row come after it.
            cuts.append((covered, end - covered))
        return cuts

    def _outdated(self, job: _Job) -> str:
        """Why a job's segments can't be shown any more, as far as the host knows; empty if they can."""
        plan, row = job.plan, self.store.row(job.plan.slot, job.plan.generation)
        if row is None:
            return "request_ended"
        first = next((i for i, s in enumerate(row.segments) if s.start >= plan.start), len(row.segments))
        end = first + len(plan.replaced)
        there, after = tuple(row.segments[first:end]), row.segments[end : end + 1]
        if (
            there != plan.replaced
            or row.end_of(first) != plan.start
            or any(s.start != plan.end for s in after)
        ):
            return "index_changed"
        if not self.store.has_room(row, removed=len(plan.replaced), added=len(job.segments)):
            return "table_full"
        return ""

    def _verify(self, job: _Job, reply: RefreshReply, frames: Sequence[bytes]) -> None:
        """Looks at a result, and at whether its keys are still there, beside the steps; then publishes it."""
        plan, row = job.plan, self.store.row(job.plan.slot, job.plan.generation)
        takeovers = row.takeovers if row is not None else 0
        with self._deferred.aside():
            try:
                found = self._faults(job, reply, frames)
            except ValueError as error:
                logger.warning("a clustering actor's result is none: %s", error)
                self._end(job, "invalid_result")
                return
            slots = upload(job.slots, self._device)
            moved = (self._slots_of(plan.slot, plan.start, plan.end) != slots).any()
            written_at = self.store.clock.latest(slots)
            self._deferred.when_here(
                [moved, written_at, found],
                lambda values: self._publish(job, *values, takeovers=takeovers, in_place=not reply.tensors),
            )

    def _faults(self, job: _Job, reply: RefreshReply, frames: Sequence[bytes]) -> torch.Tensor:
        """What is wrong with the clusters in a job's segments; those that were sent are written there first.

        Returns:
            bool [pieces, 3] on the device; see `verify.faults`.

        Raises:
            ValueError: what was sent has other shapes or dtypes than clusters have.
        """
        arena = self.store.arena
        if not reply.tensors:
            return torch.stack([faults(arena.read(s.unit, s.length)) for s in job.segments])
        none = self._read_keys(job.slots[:0]).flatten(0, 1)  # tells the shape and the dtype of keys
        lengths = [segment.length for segment in job.segments]
        tensors = messages.unpack(reply.tensors, frames)
        sent = unflatten(tensors, lengths, self._cluster_size, none)
        found = []
        for segment, clusters in zip(job.segments, sent, strict=True):
            here = Clusters(*(upload(tensor, self._device) for tensor in flatten([clusters])))
            arena.write(segment.unit, here)
            found.append(faults(here))
        return torch.stack(found)

    def _publish(
        self,
        job: _Job,
        moved: torch.Tensor,
        written_at: torch.Tensor,
        found: torch.Tensor,
        *,
        takeovers: int,
        in_place: bool,
    ) -> None:
        """Swaps a result in, or says why it must not be.

        Positions of a row that has not ended are where they were when they were looked at, unless the prefix
        cache has taken some over since.
        """
        plan, row = job.plan, self.store.row(job.plan.slot, job.plan.generation)
        reason = self._outdated(job)
        if not reason and (bool(moved) or (row is not None and row.takeovers != takeovers)):
            reason = "slots_moved"
        if not reason and int(written_at) > plan.read_at:
            reason = "slots_rewritten"
        if not reason and (fault := describe(found)):
            logger.warning("a clustering actor's result is none: %s", fault)
            reason = "invalid_result"
        if not reason and row is not None:
            self.store.swap(plan.slot, row, plan.replaced, job.segments)
            if in_place and not self.in_place:
                logger.info("clustering actors read keys and write clusters in place")
            self.in_place += in_place
        self._end(job, reason)
