"""Streaming text into a session, acknowledged piece by piece."""

import zlib
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass

from tactic.service.client._errors import TacticError
from tactic.service.client._retry import Patience
from tactic.v1 import session_pb2 as pb

CHUNK_BYTES = 256 * 1024
# Sent before an acknowledgement is asked for: what is kept for repetition.
WINDOW_BYTES = 2**20

Text = str | bytes | Iterable[bytes] | AsyncIterable[bytes]
Send = Callable[[list[pb.AppendContextRequest]], Awaitable[pb.AppendContextResponse]]
GetSession = Callable[[], Awaitable[pb.Session]]


@dataclass(frozen=True)
class AppendProgress:
    """What is durable so far. `total_bytes` is None if the text's length is not known beforehand."""

    bytes_accepted: int
    tokens_appended: int
    total_bytes: int | None


class Appender:
    """One append, from its first byte to its last acknowledgement."""

    def __init__(
        self,
        header: pb.AppendHeader,
        send: Send,
        get_session: GetSession,
        reconnect_s: float,
        on_progress: Callable[[AppendProgress], None],
    ) -> None:
        """Prepares an append.

        Args:
            header: names session and append.
            send: makes one AppendContext call.
            get_session: asks for the session's present state.
            reconnect_s: how long to go on while no front end answers.
            on_progress: is told after each acknowledgement.
        """
        self._header = header
        self._send = send
        self._get_session = get_session
        self._reconnect_s = reconnect_s
        self._on_progress = on_progress

    async def run(self, text: Text) -> pb.AppendContextResponse:
        """Sends what of `text` is not durable yet, and returns the last acknowledgement.

        Raises:
            TacticError: as the server says, or if it does not answer in time.
        """
        total = (
            len(text.encode()) if isinstance(text, str) else len(text) if isinstance(text, bytes) else None
        )
        done = await self._durable() or 0
        offset = 0
        async for window, last in _windows(text):
            end = offset + len(window)
            if last or end > done:
                response = await self._send_window(window, offset, max(done, offset), last)
                self._on_progress(AppendProgress(response.bytes_accepted, response.tokens_appended, total))
                if response.finished:
                    break
            offset = end
        return response

    async def _send_window(
        self, window: bytes, offset: int, start: int, last: bool
    ) -> pb.AppendContextResponse:
        """Sends window[start - offset:], and again from where the server stands if the stream breaks."""
        patience = Patience(self._reconnect_s)
        while True:
            chunks = _chunks(window[start - offset :], start, last)
            try:
                return await self._send([pb.AppendContextRequest(header=self._header), *chunks])
            except TacticError as error:
                await patience.after(error)
            durable = await self._durable()
            # Not open: nothing of it was durable yet, or it is finished, which the server then says.
            start = offset if durable is None else max(durable, offset)

    async def _durable(self) -> int | None:
        session = await self._get_session()
        same = session.HasField("append") and session.append.append_id == self._header.append_id
        return session.append.next_offset if same else None


async def _windows(text: Text) -> AsyncIterator[tuple[bytes, bool]]:
    """Cuts the text into windows; True goes with the last one. An empty text is one empty window."""
    waiting = b""
    async for piece in _pieces(text):
        waiting += piece
        while len(waiting) > WINDOW_BYTES:
            yield waiting[:WINDOW_BYTES], False
            waiting = waiting[WINDOW_BYTES:]
    yield waiting, True


async def _pieces(text: Text) -> AsyncIterator[bytes]:
    if isinstance(text, str):
        text = text.encode()
    if isinstance(text, bytes):
        # Slices, so that cutting windows does not copy the rest each time.
        for at in range(0, len(text), WINDOW_BYTES):
            yield text[at : at + WINDOW_BYTES]
    elif isinstance(text, AsyncIterable):
        async for piece in text:
            yield piece
    else:
        for piece in text:
            yield piece


def _chunks(data: bytes, offset: int, last: bool) -> list[pb.AppendContextRequest]:
    requests = []
    for at in range(0, len(data), CHUNK_BYTES) or range(1):
        piece = data[at : at + CHUNK_BYTES]
        chunk = pb.AppendChunk(
            offset=offset + at,
            data=piece,
            crc32=zlib.crc32(piece),
            last=last and at + CHUNK_BYTES >= len(data),
        )
        requests.append(pb.AppendContextRequest(chunk=chunk))
    return requests
