"""SessionService.AppendContext."""

from __future__ import annotations

import asyncio
import uuid
import zlib
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass

from tactic.service.frontend.errors import Violation, invalid
from tactic.service.frontend.model import ServedModel
from tactic.service.frontend.turns import Turns
from tactic.service.frontend.validation import check_name, check_room, require
from tactic.service.sessions import (
    AppendStore,
    FinishedAppend,
    Lease,
    LeaseKeeper,
    Session,
    SessionStore,
    WrongOffsetError,
)
from tactic.service.text import InvalidUtf8Error, encode_chunk
from tactic.v1 import session_pb2

MAX_CHUNK_BYTES = 2**20


@dataclass
class Progress:
    """Where an append stands."""

    append_id: str
    offset: int = 0
    tokens: int = 0
    carry: bytes = b""
    anchor: str = ""
    log_tokens: int = 0
    """Tokens in the session's log."""
    finished: bool = False


class Appends:
    """Takes streamed text into sessions."""

    def __init__(
        self,
        sessions: SessionStore,
        appends: AppendStore,
        leases: LeaseKeeper,
        turns: Turns,
        model: ServedModel,
    ) -> None:
        self._sessions = sessions
        self._appends = appends
        self._leases = leases
        self._turns = turns
        self._model = model

    async def run(
        self, requests: AsyncIterator[session_pb2.AppendContextRequest]
    ) -> tuple[session_pb2.AppendHeader, Progress]:
        """Takes one stream: up to its last chunk, or as far as it goes.

        Raises:
            ServiceError, SessionError, TemplateRefusedError: see there. Chunks before the refused one stay
                durable.
        """
        header = await _header(requests)
        append_id = header.append_id or uuid.uuid4().hex
        lease = await self._turns.settled(
            lambda: self._appends.begin(header.session_id, append_id), self._give_back, header.session_id
        )
        if isinstance(lease, FinishedAppend):
            return header, Progress(append_id, lease.offset, lease.tokens, finished=True)
        progress = Progress(append_id)
        try:
            async with self._leases.hold(lease):
                session = await self._sessions.get(header.session_id)
                self._model.check(session.model)
                _restore(progress, session)
                async for request in requests:
                    await self._take(session, lease, progress, _chunk(request))
                    if progress.finished:
                        break
        finally:
            if not progress.finished:
                await asyncio.shield(asyncio.create_task(self._leases.release(lease)))
        return header, progress

    async def _give_back(self, lease: Lease | FinishedAppend) -> None:
        if isinstance(lease, Lease):
            await self._leases.release(lease)

    async def _take(
        self, session: Session, lease: Lease, progress: Progress, chunk: session_pb2.AppendChunk
    ) -> None:
        if chunk.offset != progress.offset:
            raise WrongOffsetError(progress.offset, chunk.offset)
        if chunk.last and progress.offset + len(chunk.data) == 0:
            raise invalid("EMPTY_TEXT", Violation("chunk.data", "the text must not be empty"))
        if not chunk.data and not chunk.last:
            return
        opening, anchor = array("I"), progress.anchor
        if progress.offset == 0:
            opening, anchor = self._model.template.open_context(session.tail, session.turns)
        try:
            encoded = await asyncio.to_thread(
                encode_chunk, self._model.tokenizer, anchor, progress.carry, chunk.data, last=chunk.last
            )
        except InvalidUtf8Error as error:
            position = progress.offset + error.position
            violation = Violation("chunk.data", f"not UTF-8 at byte {position} of the text")
            raise invalid("INVALID_UTF8", violation, position=position) from None
        added = opening + encoded.token_ids
        size = progress.log_tokens + len(added) + encoded.carried_tokens
        check_room("chunk.data", size, self._model.describe().context_length)
        await self._appends.add(
            lease,
            offset=progress.offset,
            size=len(chunk.data),
            token_ids=added,
            carry=encoded.carry,
            anchor=encoded.anchor,
            last=chunk.last,
        )
        progress.offset += len(chunk.data)
        progress.tokens += len(added)
        progress.log_tokens += len(added)
        progress.carry, progress.anchor = encoded.carry, encoded.anchor
        progress.finished = chunk.last


def _restore(progress: Progress, session: Session) -> None:
    progress.log_tokens = session.tokens
    if session.append is not None:
        progress.offset = session.append.next_offset
        progress.tokens = session.append.tokens
        progress.carry, progress.anchor = session.append.carry, session.append.anchor


async def _header(requests: AsyncIterator[session_pb2.AppendContextRequest]) -> session_pb2.AppendHeader:
    first = await anext(requests, None)
    if first is None or not first.HasField("header"):
        raise invalid("HEADER_MISSING", Violation("header", "must be the first message of the stream"))
    require(
        check_name("header.session_id", first.header.session_id)
        + check_name("header.append_id", first.header.append_id, optional=True)
    )
    return first.header


def _chunk(request: session_pb2.AppendContextRequest) -> session_pb2.AppendChunk:
    if not request.HasField("chunk"):
        raise invalid("CHUNK_MISSING", Violation("chunk", "all messages after the first must be chunks"))
    chunk = request.chunk
    if len(chunk.data) > MAX_CHUNK_BYTES:
        text = f"a chunk may have {MAX_CHUNK_BYTES} bytes, not {len(chunk.data)}"
        raise invalid("CHUNK_TOO_LARGE", Violation("chunk.data", text), limit=MAX_CHUNK_BYTES)
    actual = zlib.crc32(chunk.data)
    if actual != chunk.crc32:
        text = f"the CRC-32 of the data is {actual:#010x}, not {chunk.crc32:#010x}: send the chunk again"
        raise invalid("CHECKSUM_MISMATCH", Violation("chunk.crc32", text), offset=chunk.offset)
    return chunk
