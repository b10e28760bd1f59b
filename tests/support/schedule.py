"""A scheduler, its prefix cache and a clustering actor that fails in every way, over `Pools`.

Every move is drawn from a seed. What is played is the engine and the far end of the link; index store,
refresher, k-means and attention are the product's.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from actor import Actor, Answer
from late import LateDeferred
from pools import Pools

from tactic.workers.config import RefreshConfig
from tactic.workers.refresh.deferred import Deferred
from tactic.workers.refresh.messages import RefreshJob, RefreshReply
from tactic.workers.refresh.refresher import Refresher

LONGEST = 420
"""A request that has come so far ends."""


@dataclass(eq=False)
class Request:
    """What a request's positions hold, as it knows itself, and how far it has come.

    Attributes:
        contents: keys and values of its whole prompt and output, [2, L, n, H, d].
        slot: request slot, while it has one.
        done: positions that are in the pool.
    """

    name: str
    contents: torch.Tensor
    slot: int = -1
    done: int = 0

    @property
    def length(self) -> int:
        """Positions of prompt and output."""
        return self.contents.shape[2]


class Line:
    """Both ends of the link, without the wire."""

    def __init__(self) -> None:
        self.jobs: list[tuple[RefreshJob, list[bytes]]] = []
        self.replies: list[Answer] = []

    def send(self, job: RefreshJob, frames: Any = ()) -> None:
        """The scheduler asks; keys are copied, as the pool is written on."""
        self.jobs.append((job, [bytes(frame) for frame in frames]))

    def receive(self) -> Iterator[Answer]:
        """The scheduler reads what has come."""
        while self.replies:
            yield self.replies.pop(0)


class Schedule:
    """Moves of the engine and of the clustering actor; `check` is called after each.

    Args:
        pools: pool, request table and index store.
        seed: of all draws.
        moves: how often each is drawn.
        scope: of refreshes.
        in_place: clustering actors can map the pools; else keys and clusters are sent.
        late: the host is ahead of the device, as with GPUs.
        check: raises if something is wrong.
    """

    MOVES: ClassVar[Mapping[str, float]] = {
        "join": 6,
        "prefill": 12,
        "decode": 60,
        "finish": 1,
        "abort": 1,
        "retract": 1.5,
        "move_slots": 6,
        "settle": 6,
        "evict": 2,
        "answer": 24,
        "lie": 3,
        "repeat": 1,
        "kill": 0.7,
        "hang": 1,
        "slow_down": 0.5,
        "write_late": 12,
        "end": 3,
    }
    """How often each is drawn: as in long generations that are refreshed often."""
    TURNOVER: ClassVar[Mapping[str, float]] = MOVES | {
        "join": 30,
        "prefill": 30,
        "decode": 16,
        "finish": 10,
        "evict": 9,
        "move_slots": 2,
        "settle": 8,
        "lie": 12,
    }
    """Short turns: slots and segments change hands all the time."""
    INTERVAL = 6

    def __init__(
        self,
        pools: Pools,
        seed: int,
        *,
        moves: Mapping[str, float],
        scope: str,
        in_place: bool,
        late: bool,
        check: Callable[["Schedule"], None],
    ) -> None:
        self.pools = pools
        self.random = random.Random(seed)
        self.running: list[Request] = []
        self.waiting: list[Request] = []
        self.cached: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.holders: Counter[int] = Counter()
        self.seen: Counter[str] = Counter()
        self.events = 0
        self._moves, self._weights = list(moves), list(moves.values())
        self._check = check
        self._line = Line()
        self._actor = Actor()
        self._in_place = in_place
        self._answered: list[Answer] = []
        # Jobs of actors that were given up, but are not known to be at an end.
        self._haunted: list[RefreshJob] = []
        # Moves for which the actor gives no sign, and whether it is dead to the world then.
        self._silent, self._hung = 0, False
        self.refresher = Refresher(
            pools.store,
            self._line,
            RefreshConfig(interval=self.INTERVAL, scope=scope),
            rank=0,
            cluster_size=pools.CLUSTER,
            pools=pools.share() if in_place else None,
            read_keys=pools.read_keys,
            slots_of=pools.slots_of,
            deferred=LateDeferred(lambda: self.random.random() < 0.5)
            if late
            else Deferred(torch.device("cpu")),
        )

    def run(self, events: int) -> None:
        """Makes so many moves; those that found nothing to move are not counted."""
        while self.events < events:
            (move,) = self.random.choices(self._moves, self._weights)
            if getattr(self, move)() is False:
                continue
            self.events += 1
            self.seen[move] += 1
            self._wake()
            self._check(self)

    # The engine ------------------------------------------------------------------------------------------

    def join(self) -> bool:
        """A new request, or one that was retracted, gets a request slot and what the cache has of it."""
        idle = set(range(len(self.pools.lengths))) - {request.slot for request in self.running}
        if not idle:
            return False
        if self.waiting and self.random.random() < 0.7:
            request = self.waiting.pop(0)
        else:
            request = Request(f"request-{self.events}", self._prompt())
        prefix = self._cached_prefix(request.contents)
        self.holders.update(prefix.tolist())
        request.slot, request.done = self.random.choice(sorted(idle)), len(prefix)
        row = self.pools.admit(request.slot, prefix, request.name)
        self.seen["reused"] += bool(row.segments)
        self.running.append(request)
        return True

    def prefill(self) -> bool:
        """The next chunk of a prompt. Its last position is not clustered: whoever reads it writes it anew."""
        waiting = [request for request in self.running if request.done < request.length]
        if not waiting:
            return False
        request = self.random.choice(waiting)
        count = min(self.random.randint(1, 320), request.length - request.done)
        if not self._make_room(count):
            return False
        self._publish()
        if request not in self.running:
            return True
        self._write(request, count)
        complete = request.done == request.length
        row, end = self.pools.row(request.slot), request.done - complete
        slots = self.pools.read_slots(request.slot, 0, end)
        self.pools.build(self.pools.store.extend(request.slot, row, slots, complete=complete))
        return True

    def decode(self) -> bool:
        """A decode step of all whose prompt is there."""
        if not self._make_room(len(self.running)):
            return False
        ready = [request for request in self.running if request.done == request.length]
        if not ready:
            return False
        self._publish()
        for request in ready:
            self.refresher.step(request.slot, self.pools.row(request.slot), request.done)
            request.contents = torch.cat([request.contents, self.pools.draw(1)], dim=2)
            self._write(request, 1)
            if request.done >= LONGEST:
                self._leave(request, keep=True)
        return True

    def finish(self) -> bool:
        """A request ends and the cache keeps its context."""
        return self._leave_any(lambda request: self._leave(request, keep=True))

    def abort(self) -> bool:
        """A client goes, perhaps in the middle of its prompt; nothing of it stays."""
        return self._leave_any(lambda request: self._leave(request, keep=False))

    def retract(self) -> bool:
        """A request must wait; it comes back with what it had generated."""
        return self._leave_any(self._retract)

    def evict(self) -> bool:
        """The cache frees a context."""
        if not self.cached:
            return False
        slots, _ = self.cached.pop(self.random.randrange(len(self.cached)))
        self._drop(slots)
        return True

    def move_slots(self) -> bool:
        """The cache has a part of a context elsewhere, points the request there and frees its own."""
        request = self._unsettled()
        if request is None:
            return False
        start = self.random.randrange(self.pools.row(request.slot).settled, request.done)
        end = min(request.done, start + self.random.randint(1, 80))
        if len(self.pools.free) < end - start:
            return False
        old = self.pools.read_slots(request.slot, start, end)
        new = self.pools.write(end - start, request.contents[:, :, start:end])
        self.holders.update(new.tolist())
        self.pools.req_to_token[request.slot, start:end] = new
        self.pools.row(request.slot).takeovers += 1
        self._drop(old)
        return True

    def settle(self) -> bool:
        """The cache takes a request's positions over, where they lie by now."""
        request = self._unsettled()
        if request is None:
            return False
        row = self.pools.row(request.slot)
        self.pools.store.settle(row, self.pools.read_slots(request.slot, row.settled, request.done))
        return True

    def _unsettled(self) -> Request | None:
        """A request with positions that the cache has not taken over."""
        unsettled = [r for r in self.running if r.done > self.pools.row(r.slot).settled]
        return self.random.choice(unsettled) if unsettled else None

    def _prompt(self) -> torch.Tensor:
        """New tokens, mostly after a part of something that is cached."""
        new = self.pools.draw(self.random.randint(1, 200))
        if not self.cached or self.random.random() < 0.3:
            return new
        _, contents = self.random.choice(self.cached)
        shared = self.random.choice([contents.shape[2], self.random.randrange(contents.shape[2] + 1)])
        return torch.cat([contents[:, :, : min(shared, LONGEST - 200)], new], dim=2)

    def _cached_prefix(self, contents: torch.Tensor) -> torch.Tensor:
        """Slots of the longest cached prefix, less the last position."""
        best = torch.empty(0, dtype=torch.int32)
        for slots, cached in self.cached:
            most = min(len(slots), contents.shape[2] - 1)
            same = (cached[0, 0, :most, 0, 0] == contents[0, 0, :most, 0, 0]).long().cumprod(0)
            if (length := int(same.sum())) > len(best):
                best = slots[:length]
        return best

    def _write(self, request: Request, count: int) -> None:
        contents = request.contents[:, :, request.done : request.done + count]
        self.pools.decode(request.slot, count, contents)
        written = self.pools.read_slots(request.slot, request.done, request.done + count)
        self.holders.update(written.tolist())
        request.done += count

    def _make_room(self, count: int) -> bool:
        """Frees slots as the engine does: what is only cached, then whoever came last."""
        while len(self.pools.free) < count:
            if not self.evict():
                if len(self.running) < 2:
                    return False
                self._retract(self.running[-1])
        return True

    def _leave_any(self, how: Callable[[Request], None]) -> bool:
        if not self.running:
            return False
        how(self.random.choice(self.running))
        return True

    def _retract(self, request: Request) -> None:
        self._leave(request, keep=self.random.random() < 0.5)
        self.waiting.append(request)

    def _leave(self, request: Request, *, keep: bool) -> None:
        self.running.remove(request)
        slots = self.pools.context(request.slot)
        self.pools.store.release(request.slot)
        if keep and len(slots):
            self.cached.append((slots, request.contents[:, :, : len(slots)]))
        else:
            self._drop(slots)
        request.slot, request.done = -1, 0

    def _drop(self, slots: torch.Tensor) -> None:
        self.holders.subtract(slots.tolist())
        self.pools.drop([slot for slot in slots.tolist() if not self.holders[slot]])

    def _publish(self) -> None:
        for _, _, reason in self.refresher.poll():
            self.seen[reason or "published"] += 1

    # The clustering actor --------------------------------------------------------------------------------

    def answer(self) -> bool:
        """A job is done, not always the oldest."""
        if (job := self._next_job()) is None:
            return False
        self._reply(*self._actor.answer(*job))
        return True

    def lie(self) -> bool:
        """A result that is none."""
        if (job := self._next_job()) is None:
            return False
        in_place = (self._bad_number, self._unwritten, self._scribbled)
        sent = (self._bad_number, self._missing, self._wrong_type, self._cut_short)
        self._reply(*self.random.choice(in_place if self._in_place else sent)(*job))
        return True

    def _bad_number(self, job: RefreshJob, frames: list[bytes]) -> Answer:
        def spoil(tensors: list[torch.Tensor]) -> None:
            value = self.random.choice(tensors)
            at = tuple(self.random.randrange(n) for n in value.shape)
            value[at] = torch.nan if value.is_floating_point() else -1

        return self._actor.answer(job, frames, spoil)

    def _unwritten(self, job: RefreshJob, _: list[bytes]) -> Answer:
        return RefreshReply(job.job_id), []

    def _scribbled(self, job: RefreshJob, _: list[bytes]) -> Answer:
        self._actor.scribble(job, self.random)
        return RefreshReply(job.job_id), []

    def _missing(self, job: RefreshJob, frames: list[bytes]) -> Answer:
        return self._actor.answer(job, frames, list.pop)

    def _wrong_type(self, job: RefreshJob, frames: list[bytes]) -> Answer:
        def spoil(tensors: list[torch.Tensor]) -> None:
            victim = self.random.randrange(len(tensors))
            tensors[victim] = tensors[victim].to(torch.float64)

        return self._actor.answer(job, frames, spoil)

    def _cut_short(self, job: RefreshJob, frames: list[bytes]) -> Answer:
        reply, result = self._actor.answer(job, frames)
        return reply, result[:-1]

    def repeat(self) -> bool:
        """An answer comes twice."""
        if not self._answered:
            return False
        self._line.replies.append(self.random.choice(self._answered))
        return True

    def kill(self) -> bool:
        """The actor dies, with what it was doing; what waits is given up, too."""
        self._silent, self._hung = 0, False
        if self._in_place and self._line.jobs:
            self._actor.scribble(self._line.jobs[0][0], self.random)
        self._give_up("actor_died")
        return True

    def hang(self) -> bool:
        """The actor does nothing until its time limit is over, and may not be dead even then."""
        return self._fall_silent(hung=True)

    def slow_down(self) -> bool:
        """The actor takes long over what it does: tails grow, and the answer may come too late."""
        return self._fall_silent(hung=False)

    def write_late(self) -> bool:
        """An actor that was given up goes on with a job."""
        if not self._haunted:
            return False
        job = self.random.choice(self._haunted)
        if self.random.random() < 0.5:
            self._actor.scribble(job, self.random)
        else:
            self._actor.answer(job, [])
        return True

    def end(self) -> bool:
        """An actor that was given up is dead at last."""
        if not self._haunted:
            return False
        job = self._haunted.pop(self.random.randrange(len(self._haunted)))
        self._line.replies.append((RefreshReply(job.job_id, error="timeout"), []))
        return True

    def _fall_silent(self, *, hung: bool) -> bool:
        if self._silent:
            return False
        self._silent, self._hung = self.random.randint(10, 50), hung
        return True

    def _wake(self) -> None:
        if self._silent:
            self._silent -= 1
            if not self._silent and self._hung:
                self._give_up("timeout", held=self._in_place)

    def _next_job(self) -> tuple[RefreshJob, list[bytes]] | None:
        if self._silent or not self._line.jobs:
            return None
        return self._line.jobs.pop(self.random.randrange(len(self._line.jobs)))

    def _give_up(self, error: str, *, held: bool = False) -> None:
        for job, _ in self._line.jobs:
            self._reply(RefreshReply(job.job_id, error=error, held=held), [])
            if held:
                self._haunted.append(job)
        self._line.jobs.clear()

    def _reply(self, reply: RefreshReply, frames: list[Any]) -> None:
        self._answered = [*self._answered[-8:], (reply, frames)]
        self._line.replies.append((reply, frames))
