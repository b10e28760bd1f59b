"""Turns on a session: their beginning, frames, end, and taking them over."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Literal

from tactic.service.sessions.client import RedisClient
from tactic.service.sessions.errors import TurnNotFoundError
from tactic.service.sessions.keys import Keys
from tactic.service.sessions.records import Lease, Session, Turn
from tactic.service.sessions.scripts import Scripts, new_nonce
from tactic.service.sessions.tokens import pack

# Frames fetched at once.
READ_FRAMES = 256


@dataclass(frozen=True)
class Resumption:
    """What resuming a turn has led to.

    `run`: the caller holds the lease and runs it. `follow`: another front end runs it. `finished`: its frames
    are complete. `ended`: it was cut short and the session has gone on.
    """

    outcome: Literal["run", "follow", "finished", "ended"]
    lease: Lease | None = None


class TurnStore:
    """Records turns. A frame is durable before a client sees it."""

    def __init__(self, redis: RedisClient, lease_ttl_s: float, replay_ttl_s: float) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)
        self._ttl_ms = round(lease_ttl_s * 1000)
        self._replay_ms = round(replay_ttl_s * 1000)

    async def begin(
        self, session: Session, turn_id: str, *, request: bytes, digest: str, prompt: array[int]
    ) -> tuple[Lease, Turn]:
        """Begins a turn on the session as it was read.

        Args:
            session: its log is what `prompt` was rendered for.
            turn_id: a new one.
            request: kept, so that another front end can go on with the turn.
            digest: tells a repeated request from another one.
            prompt: token ids that the turn adds to the log before its output.

        Raises:
            LogMovedError, TurnExistsError, SessionNotFoundError, SessionBusyError, AppendOpenError,
            OrphanedTurnError: see there.
        """
        keys, nonce = Keys(session.session_id), new_nonce()
        _, fence = await self._scripts.run(
            "begin_turn",
            keys,
            [keys.turns, keys.turn(turn_id)],
            [turn_id, nonce, self._ttl_ms, session.tokens, request, digest, b"".join(pack(prompt))],
            subject=turn_id,
        )
        lease = Lease(session.session_id, "turn", turn_id, nonce, fence)
        at = session.tokens
        return lease, Turn(turn_id, "running", request, digest, prompt, start=at, end=at, logged=0)

    async def resume(self, session_id: str, turn_id: str) -> Resumption:
        """Takes a turn over if nobody runs it and the session has not gone on since.

        Raises:
            TurnNotFoundError, SessionNotFoundError: see there.
        """
        keys, nonce = Keys(session_id), new_nonce()
        outcome, *values = await self._scripts.run(
            "resume_turn",
            keys,
            [keys.turns, keys.turn(turn_id), keys.frames(turn_id)],
            [turn_id, nonce, self._ttl_ms],
            subject=turn_id,
        )
        match outcome:
            case "RUN":
                return Resumption("run", Lease(session_id, "turn", turn_id, nonce, values[0]))
            case "FOLLOW":
                return Resumption("follow")
            case "FINISHED":
                return Resumption("finished")
        return Resumption("ended")

    async def get(self, session_id: str, turn_id: str) -> Turn:
        """Reads a turn.

        Raises:
            TurnNotFoundError: there is none, or it is kept no longer.
        """
        fields = await self._redis.hgetall(Keys(session_id).turn(turn_id))
        if not fields:
            raise TurnNotFoundError(turn_id, expired=False)
        return Turn.from_hash(turn_id, fields)

    async def record(self, lease: Lease, seq: int, frame: bytes) -> None:
        """Makes frame `seq` durable.

        Raises:
            LeaseLostError, SessionNotFoundError: see there.
        """
        keys = Keys(lease.session_id)
        await self._scripts.run(
            "record_frame", keys, [keys.frames(lease.holder_id)], [lease.fence, seq, frame]
        )

    async def frames(
        self, session_id: str, turn_id: str, after_seq: int, wait_ms: int | None = None
    ) -> list[bytes]:
        """Reads frames after `after_seq`, a few hundred at most.

        Args:
            session_id: the session.
            turn_id: the turn.
            after_seq: 0 for all.
            wait_ms: how long to wait for one if there is none; None does not wait.
        """
        key = Keys(session_id).frames(turn_id)
        reply = await self._redis.xread({key: f"{after_seq}-0"}, count=READ_FRAMES, block=wait_ms)
        return [fields[b"frame"] for _, entries in reply for _, fields in entries]

    async def end(
        self,
        lease: Lease,
        turn: Turn,
        output: array[int],
        *,
        last_frame: tuple[int, bytes] | None,
    ) -> None:
        """Puts the turn's prompt and output into the log, all or nothing, and gives up the lease.

        Args:
            lease: of the turn.
            turn: as it was when it was begun or taken over.
            output: all of its output token ids, also those already logged.
            last_frame: number and content of the frame that says it is finished; None if it was interrupted
                and may be resumed. An interrupted turn without output leaves the log as it was.

        Raises:
            LeaseLostError, SessionNotFoundError: see there.
        """
        finished = last_frame is not None
        seq, frame = last_frame or (0, b"")
        added = output[turn.logged :]
        if turn.end == turn.start and (output or finished):
            added = turn.prompt + added
        keys = Keys(lease.session_id)
        await self._scripts.run(
            "end_turn",
            keys,
            [keys.log, keys.turns, keys.turn(turn.turn_id), keys.frames(turn.turn_id)],
            [
                lease.fence,
                new_nonce(),
                turn.turn_id,
                "finished" if finished else "interrupted",
                self._replay_ms,
                len(output),
                len(added),
                seq,
                frame,
                *pack(added),
            ],
        )

    async def drop(self, lease: Lease) -> None:
        """Forgets a turn that has changed nothing, and gives up the lease.

        Raises:
            LeaseLostError, SessionNotFoundError: see there.
        """
        keys, turn_id = Keys(lease.session_id), lease.holder_id
        await self._scripts.run(
            "drop_turn",
            keys,
            [keys.turns, keys.turn(turn_id), keys.frames(turn_id)],
            [lease.fence, new_nonce(), turn_id],
        )
