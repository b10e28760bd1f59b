"""Turns on a session: sessions × routing × text."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from array import array
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc

from tactic.service.frontend.errors import Code, ServiceError, Violation
from tactic.service.frontend.generation import FrameStream
from tactic.service.frontend.kept import Kept
from tactic.service.frontend.model import ServedModel
from tactic.service.frontend.validation import check_room, plain_messages
from tactic.service.routing import Dispatcher, Job
from tactic.service.sessions import (
    Lease,
    LeaseKeeper,
    LogMovedError,
    OrphanedTurnError,
    Resumption,
    Session,
    SessionError,
    SessionStore,
    Turn,
    TurnExistsError,
    TurnNotFoundError,
    TurnStore,
)
from tactic.service.text import OutputText
from tactic.v1 import generation_pb2, types_pb2

log = logging.getLogger(__name__)

Frame = generation_pb2.GenerationFrame
Send = Callable[[Frame], Awaitable[None]]
Result = TypeVar("Result")
# How long a follower of another front end's turn waits before it asks whether that one still lives.
FOLLOW_MS = 1000


@dataclass
class _Run:
    """A turn that this front end runs."""

    lease: Lease
    turn: Turn
    output: array[int]
    """Token ids that clients may have seen."""
    recording: asyncio.Task[None] | None = None
    """Makes a frame durable, also while the turn is being cancelled."""


class Turns:
    """Begins, resumes and settles turns. A frame is recorded before it is sent."""

    def __init__(
        self,
        sessions: SessionStore,
        turns: TurnStore,
        leases: LeaseKeeper,
        dispatcher: Dispatcher,
        model: ServedModel,
        default_max_tokens: int,
    ) -> None:
        self._sessions = sessions
        self._turns = turns
        self._leases = leases
        self._dispatcher = dispatcher
        self._model = model
        self._default_max_tokens = default_max_tokens
        self._kept = Kept()

    async def chat(self, request: generation_pb2.ChatCompletionRequest, turn_id: str, send: Send) -> None:
        """Runs a new turn on a session, or attaches to the one of this id.

        Raises:
            ServiceError, SessionError, NoWorkerError, WorkerRefusedError, TemplateRefusedError: see there.
                Before the first token they leave the session as it was; later what was sent is in the log.
        """
        if request.HasField("resume_after_seq"):
            await self._attach(request.session_id, turn_id, request.resume_after_seq, send)
            return
        digest = _digest(request)
        try:
            session, lease, turn, prompt = await self._begin(request, turn_id, digest)
        except TurnExistsError:
            await self._attach(request.session_id, turn_id, 0, send, digest)
            return
        await self._run(_Run(lease, turn, array("I")), request, session.worker, prompt, [], 0, send)

    def job(
        self,
        prompt: array[int],
        sampling: types_pb2.SamplingOptions,
        tactic: types_pb2.TacticOptions,
        worker: str = "",
    ) -> Job:
        """Builds what a worker is asked for, with defaults and the context limit applied.

        Args:
            prompt: token ids, an array of type "I", that leave room for one more.
            sampling: of the request.
            tactic: of the request.
            worker: preferred one.
        """
        room = self._model.describe().context_length - len(prompt)
        options = types_pb2.SamplingOptions()
        options.CopyFrom(sampling)
        wanted = sampling.max_tokens if sampling.HasField("max_tokens") else self._default_max_tokens
        options.max_tokens = min(wanted, room)
        stop_ids = frozenset[int]() if sampling.ignore_eos else self._model.tokenizer.end_ids
        return Job(prompt, options, tactic, stop_ids, worker)

    async def settle(self, session_id: str, turn_id: str) -> None:
        """Closes a turn that was left behind, if nobody runs it: what was acknowledged goes into the log."""
        await asyncio.shield(self._kept.start(self._settle(session_id, turn_id)))

    async def settled(
        self,
        begin: Callable[[], Coroutine[Any, Any, Result]],
        undo: Callable[[Result], Awaitable[None]],
        session_id: str,
    ) -> Result:
        """Calls `begin`, and again after settling a turn that was left behind and is in its way.

        Args:
            begin: takes the session's lease.
            undo: gives it back, if the caller is cancelled meanwhile.
            session_id: the session.
        """
        while True:
            try:
                return await self._kept.take(begin(), undo)
            except OrphanedTurnError as orphan:
                await self.settle(session_id, orphan.turn_id)

    async def close(self) -> None:
        """Waits for what is still being written."""
        await self._kept.close()

    async def _begin(
        self, request: generation_pb2.ChatCompletionRequest, turn_id: str, digest: str
    ) -> tuple[Session, Lease, Turn, array[int]]:
        """Returns the session as it was, the turn and its lease, and the whole prompt."""
        messages = plain_messages(request.messages)
        while True:
            session = await self._sessions.get(request.session_id)
            if await self._exists(session, turn_id):
                raise TurnExistsError(turn_id)
            if session.active_turn:
                # Settling, if it is needed, changes what the log ends with.
                await self.settle(session.session_id, session.active_turn)
                session = await self._sessions.get(request.session_id)
            model = self._model.check(session.model)
            self._model.check(request.model)
            added = await asyncio.to_thread(
                self._model.template.prompt, session.tail, session.turns, messages
            )
            check_room("messages", session.tokens + len(added), model.context_length)
            prompt = await self._sessions.read_log(session)
            prompt.extend(added)
            try:
                begin = self._turns.begin(
                    session, turn_id, request=request.SerializeToString(), digest=digest, prompt=added
                )
                lease, turn = await self._kept.take(begin, lambda begun: self._turns.drop(begun[0]))
            except (LogMovedError, OrphanedTurnError):
                continue
            return session, lease, turn, prompt

    async def _exists(self, session: Session, turn_id: str) -> bool:
        try:
            await self._turns.get(session.session_id, turn_id)
        except TurnNotFoundError:
            return False
        return True

    async def _attach(
        self, session_id: str, turn_id: str, seen: int, send: Send, digest: str | None = None
    ) -> None:
        """Sends frames after `seen`; runs the turn if nobody does, else follows it."""
        while True:
            resumption = await self._kept.take(self._turns.resume(session_id, turn_id), self._leave)
            if resumption.lease is not None:
                await self._resume(resumption.lease, seen, send, digest)
                return
            if digest is not None:
                self._check_same(await self._turns.get(session_id, turn_id), digest)
            following = resumption.outcome == "follow"
            frames = await self._turns.frames(session_id, turn_id, seen, FOLLOW_MS if following else None)
            for raw in frames:
                frame = Frame.FromString(raw)
                await send(frame)
                seen = frame.seq
                if frame.HasField("finished"):
                    return
            if not frames and not following:
                if resumption.outcome == "ended":
                    reason = types_pb2.FINISH_REASON_CANCELLED
                    finished = generation_pb2.Finished(reason=reason)
                    await send(Frame(seq=seen + 1, turn_id=turn_id, finished=finished))
                return

    async def _resume(self, lease: Lease, seen: int, send: Send, digest: str | None) -> None:
        """Goes on with a turn whose front end has left it."""
        try:
            run, frames, request = await self._recover(lease)
            if digest is not None:
                self._check_same(run.turn, digest)
            session = await self._sessions.get(lease.session_id)
            known = await self._sessions.read_log(session)
            prompt = known[: run.turn.start] + run.turn.prompt
        except BaseException:
            await asyncio.wait([self._kept.start(self._close(lease))])
            raise
        seq = frames[-1].seq if frames else 0
        unseen = [frame for frame in frames if frame.seq > seen]
        await self._run(run, request, session.worker, prompt, unseen, seq, send)

    async def _settle(self, session_id: str, turn_id: str) -> None:
        try:
            resumption = await self._turns.resume(session_id, turn_id)
        except TurnNotFoundError:
            # Its front end has dropped it since it was seen.
            return
        if resumption.lease is not None:
            tokens = await self._close(resumption.lease)
            log.info("turn %s of session %s was left behind after %d tokens", turn_id, session_id, tokens)

    async def _leave(self, resumption: Resumption) -> None:
        if resumption.lease is not None:
            await self._close(resumption.lease)

    async def _close(self, lease: Lease) -> int:
        """Interrupts a turn that was taken over; returns how many tokens it has."""
        run, _, _ = await self._recover(lease)
        await self._interrupt(run)
        return len(run.output)

    async def _recover(self, lease: Lease) -> tuple[_Run, list[Frame], generation_pb2.ChatCompletionRequest]:
        """Reads a turn and its frames back."""
        turn = await self._turns.get(lease.session_id, lease.holder_id)
        frames: list[Frame] = []
        while more := await self._turns.frames(
            lease.session_id, lease.holder_id, frames[-1].seq if frames else 0
        ):
            frames += [Frame.FromString(raw) for raw in more]
        output = array("I")
        for frame in frames:
            output.extend(frame.delta.token_ids)
        request = generation_pb2.ChatCompletionRequest.FromString(turn.request)
        return _Run(lease, turn, output), frames, request

    async def _run(
        self,
        run: _Run,
        request: generation_pb2.ChatCompletionRequest,
        worker: str,
        prompt: array[int],
        unseen: list[Frame],
        seq: int,
        send: Send,
    ) -> None:
        """Sends recorded frames that the client has not seen, and generates from there to the turn's end."""
        session_id, turn_id = run.lease.session_id, run.lease.holder_id
        try:
            job = self.job(prompt, request.sampling, request.tactic, worker)
            job.generated.extend(run.output)
            text = OutputText(self._model.tokenizer.vocabulary, request.sampling.stop)
            text.restore(run.output)
            stream = FrameStream(
                self._dispatcher, job, text, turn_id=turn_id, model=self._model.describe().name, seq=seq
            )
            async with self._leases.hold(run.lease), aclosing(stream.frames()) as frames:
                for frame in unseen:
                    await send(frame)
                async for frame in frames:
                    if frame.HasField("finished"):
                        last = frame.seq, frame.SerializeToString()
                        await asyncio.shield(
                            self._kept.start(
                                self._turns.end(run.lease, run.turn, run.output, last_frame=last)
                            )
                        )
                    else:
                        run.recording = self._kept.start(self._record(run, frame))
                        await asyncio.shield(run.recording)
                    if job.worker != worker:
                        worker = job.worker
                        await self._sessions.set_worker(session_id, worker)
                    await send(frame)
        except (asyncio.CancelledError, grpc.aio.InternalError):
            # The client has gone: told by cancellation, or by a frame that could not be written.
            await asyncio.shield(self._kept.start(self._interrupt(run)))
            raise
        except SessionError:
            # The session is deleted or another front end has the turn: nothing is left to write.
            raise
        except Exception:
            # A client that has a frame may come back for the next one.
            unseen_yet = seq == 0 and run.recording is None
            await asyncio.shield(
                self._kept.start(self._turns.drop(run.lease) if unseen_yet else self._interrupt(run))
            )
            raise

    async def _record(self, run: _Run, frame: Frame) -> None:
        await self._turns.record(run.lease, frame.seq, frame.SerializeToString())
        run.output.extend(frame.delta.token_ids)

    async def _interrupt(self, run: _Run) -> None:
        """Puts what was acknowledged into the log. The turn may be resumed until the session goes on."""
        if run.recording is not None:
            await asyncio.wait([run.recording])
        try:
            await self._turns.end(run.lease, run.turn, run.output, last_frame=None)
        except SessionError as error:
            log.info("turn %s needs no interruption: %s", run.lease.holder_id, error)

    def _check_same(self, turn: Turn, digest: str) -> None:
        if turn.digest != digest:
            text = f"turn {turn.turn_id!r} was begun by another request"
            violations = [Violation("turn_id", text)]
            raise ServiceError(Code.ALREADY_EXISTS, "TURN_EXISTS", text, violations=violations)


def _digest(request: generation_pb2.ChatCompletionRequest) -> str:
    """Tells a repeated request from another one."""
    return hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
