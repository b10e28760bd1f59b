"""A front end between a real Redis and scripted workers."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from scripted_workers import ScriptedSupervisor, ScriptedWorker
from tiny_model import make_tiny_checkpoint

from tactic.service.config import load_settings
from tactic.service.frontend.app import FrontEnd
from tactic.service.sessions import connect
from tactic.service.text import ChatTemplate, TextTokenizer
from tactic.v1 import (
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
)

Frame = generation_pb2.GenerationFrame


class Front:
    """A running front end, with stubs."""

    def __init__(self, front_end: FrontEnd, address: str) -> None:
        self.front_end = front_end
        self.address = address
        self.channel = grpc.aio.insecure_channel(
            address, options=[("grpc.max_receive_message_length", 2**27)]
        )
        self.sessions = session_pb2_grpc.SessionServiceStub(self.channel)
        self.chats = generation_pb2_grpc.ChatServiceStub(self.channel)
        self.completions = generation_pb2_grpc.CompletionServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)

    async def ready(self) -> None:
        async with asyncio.timeout(20):
            while not self.front_end._table.ready():
                await self.front_end._table.wait_update()

    async def session(self, **fields: Any) -> str:
        return (await self.sessions.CreateSession(session_pb2.CreateSessionRequest(**fields))).session_id

    async def delete(self, session_id: str) -> None:
        await self.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session_id))

    async def get(self, session_id: str) -> session_pb2.Session:
        return await self.sessions.GetSession(session_pb2.GetSessionRequest(session_id=session_id))

    def chat(
        self,
        session_id: str,
        text: str = "Hi",
        max_tokens: int = 8,
        timeout: float | None = None,
        **fields: Any,
    ) -> grpc.aio.UnaryStreamCall[generation_pb2.ChatCompletionRequest, Frame]:
        sampling = fields.pop("sampling", types_pb2.SamplingOptions())
        sampling.max_tokens = max_tokens
        request = generation_pb2.ChatCompletionRequest(
            session_id=session_id,
            messages=[generation_pb2.Message(role="user", content=text)],
            sampling=sampling,
            **fields,
        )
        return self.chats.ChatCompletion(request, timeout=timeout)

    async def answer(
        self, session_id: str, text: str = "Hi", max_tokens: int = 8, **fields: Any
    ) -> list[Frame]:
        return [frame async for frame in self.chat(session_id, text, max_tokens, **fields)]

    async def append(
        self,
        session_id: str,
        *pieces: bytes,
        append_id: str = "",
        offset: int = 0,
        last: bool = True,
        **header: Any,
    ) -> session_pb2.AppendContextResponse:
        first = session_pb2.AppendHeader(session_id=session_id, append_id=append_id, **header)
        requests = [session_pb2.AppendContextRequest(header=first)]
        for i, piece in enumerate(pieces):
            chunk = session_pb2.AppendChunk(
                offset=offset, data=piece, crc32=zlib.crc32(piece), last=last and i == len(pieces) - 1
            )
            requests.append(session_pb2.AppendContextRequest(chunk=chunk))
            offset += len(piece)
        return await self.sessions.AppendContext(iter(requests))


class System:
    """Front ends, scripted workers and their supervisor on one Redis."""

    def __init__(self, redis_url: str, checkpoint: Path, workers: Sequence[ScriptedWorker]) -> None:
        self.workers = list(workers)
        self.supervisor = ScriptedSupervisor(self.workers)
        self.tokenizer = TextTokenizer(checkpoint)
        self.template = ChatTemplate(self.tokenizer)
        self._flags = {"redis.url": redis_url, "engine.model_path": checkpoint, "frontend.port": 0}
        self.fronts: list[Front] = []

    async def front(self, **frontend: Any) -> Front:
        """Starts one more front end."""
        own = {f"frontend.{name}": value for name, value in frontend.items()}
        supervisor = {"workers.supervisor_address": self.supervisor.address}
        front_end = FrontEnd(load_settings(self._flags | supervisor | own).settings)
        front = Front(front_end, await front_end.start())
        self.fronts.append(front)
        if self.workers:
            await front.ready()
        return front

    async def nothing_left(self) -> None:
        """Waits until no request is counted as load, or placed on a worker: none may be forgotten there."""
        async with asyncio.timeout(20):
            for front_end in (front.front_end for front in self.fronts):
                while front_end._load._mine or front_end._router._assignments:
                    await asyncio.sleep(0.005)

    def prompt(self, text: str, tail: str = "", turns: int = 0) -> list[int]:
        return list(self.template.prompt(tail, turns, [{"role": "user", "content": text}]))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"), layers=1, hidden=64, head_dim=32)


@pytest.fixture
def make_system(redis_url: str, checkpoint: Path) -> Any:
    @asynccontextmanager
    async def make(*workers: ScriptedWorker) -> AsyncIterator[System]:
        # A database for each system in turn: what dead front ends left as load is not to be seen by the next.
        url = redis_url.replace("db=0", "db=1")
        redis = connect(url)
        await redis.flushdb()  # type: ignore[attr-defined]  # beyond the protocol
        await redis.aclose()
        system = System(url, checkpoint, workers)
        for worker in workers:
            await worker.start()
        await system.supervisor.start()
        try:
            yield system
        finally:
            for front in system.fronts:
                await front.channel.close()
            await system.nothing_left()
            for front in system.fronts:
                await front.front_end.stop()
            await system.supervisor.server.stop(None)
            for worker in workers:
                await worker.server.stop(None)

    return make
