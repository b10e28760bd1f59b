"""A front end that fails on cue: a real gRPC server whose connections break where a test says."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, status_pb2
from grpc_status import rpc_status

from tactic.service.client import TacticClient, Timeouts
from tactic.v1 import generation_pb2, generation_pb2_grpc, session_pb2, session_pb2_grpc


def refusal(code: int, message: str, *details: object) -> grpc.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return rpc_status.to_status(status_pb2.Status(code=code, message=message, details=packed))


@dataclass
class Flaky(
    session_pb2_grpc.SessionServiceServicer,
    generation_pb2_grpc.ChatServiceServicer,
    generation_pb2_grpc.CompletionServiceServicer,
):
    """One session, one answer of ten frames; `failures` are used up one by one."""

    failures: list[tuple[object, ...]] = field(default_factory=list)
    # Frames, or chunks, that pass before each failure.
    pass_first: int = 0
    # The frame after which nothing comes any more.
    stall_after: int = 10
    # Whether a failing call has its effect all the same.
    lose_answer: bool = False
    names: set[str] = field(default_factory=set)
    received: bytes = b""
    append_id: str = ""
    finished: bool = False
    calls: list[object] = field(default_factory=list)

    async def _fail(self, context: grpc.aio.ServicerContext) -> None:
        if self.failures:
            await context.abort_with_status(refusal(*self.failures.pop(0)))

    async def CreateSession(self, request, context):
        self.calls.append(request)
        if not self.failures or self.lose_answer:
            if request.session_id in self.names:
                await context.abort_with_status(refusal(code_pb2.ALREADY_EXISTS, "it exists"))
            self.names.add(request.session_id)
        await self._fail(context)
        return session_pb2.Session(session_id=request.session_id)

    async def DeleteSession(self, request, context):
        self.calls.append(request)
        if not self.failures or self.lose_answer:
            if request.session_id not in self.names:
                await context.abort_with_status(refusal(code_pb2.NOT_FOUND, "no such session"))
            self.names.remove(request.session_id)
        await self._fail(context)
        return session_pb2.DeleteSessionResponse()

    async def GetSession(self, request, context):
        session = session_pb2.Session(session_id=request.session_id)
        if self.append_id and not self.finished:
            session.append.append_id = self.append_id
            session.append.next_offset = len(self.received)
        return session

    async def ListSessions(self, request, context):
        start = int(request.page_token or 0)
        page = [session_pb2.Session(session_id=str(number)) for number in range(start, min(start + 2, 5))]
        return session_pb2.ListSessionsResponse(
            sessions=page, next_page_token=str(start + 2) if start + 2 < 5 else ""
        )

    async def AppendContext(self, requests, context):
        number = 0
        async for request in requests:
            if request.HasField("header"):
                self.calls.append(request.header)
                if self.finished and request.header.append_id == self.append_id:
                    break
                self.append_id = request.header.append_id
                continue
            chunk = request.chunk
            if number >= self.pass_first:
                await self._fail(context)
            number += 1
            assert zlib.crc32(chunk.data) == chunk.crc32
            if chunk.offset != len(self.received):
                await context.abort_with_status(refusal(code_pb2.OUT_OF_RANGE, "wrong offset"))
            self.received += chunk.data
            self.finished = chunk.last
        if self.lose_answer:
            await self._fail(context)
        return session_pb2.AppendContextResponse(
            append_id=self.append_id,
            bytes_accepted=len(self.received),
            tokens_appended=len(self.received),
            finished=self.finished,
        )

    async def ChatCompletion(self, request, context):
        copy = generation_pb2.ChatCompletionRequest()
        copy.CopyFrom(request)
        self.calls.append(copy)
        async for frame in self._frames(request.resume_after_seq, request.turn_id, context):
            yield frame

    async def Complete(self, request, context):
        self.calls.append(request)
        async for frame in self._frames(0, "", context):
            yield frame

    async def _frames(
        self, after: int, turn_id: str, context
    ) -> AsyncIterator[generation_pb2.GenerationFrame]:
        for seq in range(after + 1, 11):
            if seq - after > self.pass_first:
                await self._fail(context)
            if seq > self.stall_after:
                await asyncio.Event().wait()
            frame = generation_pb2.GenerationFrame(seq=seq, turn_id=turn_id)
            if seq == 1:
                frame.started.prompt_tokens = 7
            elif seq == 10:
                frame.finished.reason = 1
            else:
                frame.delta.text = str(seq)
                frame.delta.token_ids.append(seq)
            yield frame


@dataclass
class Rig:
    flaky: Flaky
    client: TacticClient
    address: str


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    flaky = Flaky()
    server = grpc.aio.server()
    session_pb2_grpc.add_SessionServiceServicer_to_server(flaky, server)
    generation_pb2_grpc.add_ChatServiceServicer_to_server(flaky, server)
    generation_pb2_grpc.add_CompletionServiceServicer_to_server(flaky, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with TacticClient(address, Timeouts(reconnect=5.0)) as client:
        yield Rig(flaky, client, address)
    await server.stop(grace=None)


class Proxy:
    """Passes connections on to a server, until it vanishes like a host that has lost its power."""

    def __init__(self, target: str) -> None:
        self._host, _, self._port = target.rpartition(":")
        self._connections: list[asyncio.StreamWriter] = []
        self._gone: set[asyncio.StreamWriter] = set()
        self._pipes: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def vanish(self) -> None:
        """Swallows what present connections carry from now on; later ones find a healthy host."""
        self._gone |= set(self._connections)

    async def stop(self) -> None:
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)
        for writer in self._connections:
            writer.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection(self._host, int(self._port))
        self._connections += [writer, server_writer]
        self._pipes += [
            asyncio.create_task(self._pipe(reader, server_writer)),
            asyncio.create_task(self._pipe(server_reader, writer)),
        ]

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            if writer not in self._gone:
                writer.write(data)


@pytest.fixture
async def proxy(rig: Rig) -> AsyncIterator[Proxy]:
    proxy = Proxy(rig.address)
    await proxy.start()
    yield proxy
    await proxy.stop()
