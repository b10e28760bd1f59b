"""Bare stubs to a real running system, and what a refusal says."""

import zlib
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from tactic.v1 import (
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
)

Frame = generation_pb2.GenerationFrame


@dataclass
class Refusal:
    """A status with its details."""

    code: grpc.StatusCode
    reason: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: dict[str, str] = field(default_factory=dict)
    retry_s: float | None = None

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Refusal":
        refusal = cls(error.code())
        status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it has what is asked for
        for detail in status.details if status else ():
            if detail.Unpack(info := error_details_pb2.ErrorInfo()):
                assert info.domain == "tactic"
                refusal.reason, refusal.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(bad := error_details_pb2.BadRequest()):
                refusal.fields = {v.field: v.description for v in bad.field_violations}
            elif detail.Unpack(retry := error_details_pb2.RetryInfo()):
                refusal.retry_s = retry.retry_delay.ToTimedelta().total_seconds()
        return refusal


class Api:
    """Stubs and shorthands."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.sessions = session_pb2_grpc.SessionServiceStub(channel)
        self.chats = generation_pb2_grpc.ChatServiceStub(channel)
        self.completions = generation_pb2_grpc.CompletionServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)

    async def session(self, text: str = "") -> str:
        """Creates a session, with `text` as its context."""
        session_id = uuid4().hex
        await self.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=session_id))
        if text:
            await self.append(session_id, chunk(text.encode(), last=True))
        return session_id

    async def get(self, session_id: str) -> session_pb2.Session:
        return await self.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session_id))

    async def append(
        self, session_id: str, *chunks: session_pb2.AppendChunk, append_id: str = "", prefill: bool = False
    ) -> session_pb2.AppendContextResponse:
        header = session_pb2.AppendHeader(session_id=session_id, append_id=append_id, prefill=prefill)
        requests = [session_pb2.AppendContextRequest(header=header)]
        requests += [session_pb2.AppendContextRequest(chunk=each) for each in chunks]
        return await self.sessions.AppendContext(iter(requests))

    def chat(
        self, session_id: str, text: str = "Hi", timeout: float | None = None, **fields: Any
    ) -> grpc.aio.UnaryStreamCall[generation_pb2.ChatCompletionRequest, Frame]:
        fields.setdefault("messages", [generation_pb2.Message(role="user", content=text)])
        fields.setdefault("sampling", types_pb2.SamplingOptions(temperature=0, max_tokens=8))
        request = generation_pb2.ChatCompletionRequest(session_id=session_id, **fields)
        return self.chats.ChatCompletion(request, timeout=timeout)

    async def frames(self, *args: Any, **fields: Any) -> list[Frame]:
        """All frames of a chat turn."""
        return [frame async for frame in self.chat(*args, **fields)]


def chunk(
    data: bytes, offset: int = 0, *, last: bool = False, crc32: int | None = None
) -> session_pb2.AppendChunk:
    crc32 = zlib.crc32(data) if crc32 is None else crc32
    return session_pb2.AppendChunk(offset=offset, data=data, crc32=crc32, last=last)


async def refused(call: Awaitable[Any]) -> Refusal:
    """Awaits a call that must fail."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Refusal.of(caught.value)


def text_of(frames: Iterable[Frame]) -> str:
    return "".join(frame.delta.text for frame in frames)


def tokens_of(frames: Iterable[Frame]) -> list[int]:
    return [token for frame in frames for token in frame.delta.token_ids]
