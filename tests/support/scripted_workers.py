"""Workers that speak the worker protocol over real sockets and fail on command.

What they generate is a function of the tokens before it, so that an answer shows whether one was lost,
repeated or made up on the way. Real engines are in tests/contract and tests/integration.
"""

import asyncio
import zlib
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from tactic.v1 import admin_pb2, types_pb2
from tactic.worker.v1 import supervisor_pb2, supervisor_pb2_grpc, worker_pb2, worker_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
MODEL = admin_pb2.Model(name="tiny", context_length=4096, vocabulary_size=259, random_weights=True)


def next_token(tokens: list[int]) -> int:
    """Ids 64 to 89 are letters of the tiny model's vocabulary."""
    return 64 + zlib.crc32(array("I", tokens).tobytes()) % 26


def continuation(prompt: list[int], length: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


@dataclass
class ScriptedWorker(worker_pb2_grpc.WorkerServiceServicer):
    worker_id: str
    die_after: int | None = None
    """Tokens of a request after which it breaks the stream off, once."""
    dies_before_its_last_word: bool = False
    """All tokens come, but not that they are all."""
    refuse: grpc.StatusCode | None = None
    end_after: int | None = None
    """Tokens after which it generates the token that ends a turn."""
    gate: asyncio.Semaphore | None = None
    """Lets it generate one token for each release; None lets it run."""
    requests: list[worker_pb2.GenerateRequest] = field(default_factory=list)
    prefills: list[worker_pb2.PrefillRequest] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    state: admin_pb2.WorkerState.ValueType = admin_pb2.WORKER_STATE_READY
    restarts: int = 0
    address: str = ""

    async def start(self) -> None:
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    def describe(self) -> admin_pb2.Worker:
        return admin_pb2.Worker(
            worker_id=self.worker_id,
            kind=admin_pb2.WORKER_KIND_DECODE,
            state=self.state,
            address=self.address,
            restarts=self.restarts,
        )

    async def Generate(
        self, request: worker_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[worker_pb2.GenerateResponse]:
        if self.refuse is not None:
            await context.abort(self.refuse, "refused as told")
        self.requests.append(request)
        tokens = list(request.token_ids)
        reason = types_pb2.FINISH_REASON_LENGTH
        try:
            for i in range(request.sampling.max_tokens):
                if i == self.die_after:
                    self.die_after = None
                    self.restarts += 1
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "dead as told")
                if self.gate is not None:
                    await self.gate.acquire()
                token = next_token(tokens)
                if i == self.end_after and request.stop_token_ids:
                    token, reason = request.stop_token_ids[0], types_pb2.FINISH_REASON_STOP
                tokens.append(token)
                response = worker_pb2.GenerateResponse(token_ids=[token])
                if request.sampling.HasField("logprobs"):
                    response.logprobs.add(token_id=token, logprob=-1.0)
                yield response
                if reason == types_pb2.FINISH_REASON_STOP:
                    break
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if self.dies_before_its_last_word:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "dead as told")
        usage = types_pb2.Usage(prompt_tokens=len(request.token_ids), prefix_tokens_reused=7)
        yield worker_pb2.GenerateResponse(finished=worker_pb2.GenerateFinished(reason=reason, usage=usage))

    async def Prefill(
        self, request: worker_pb2.PrefillRequest, context: Context
    ) -> worker_pb2.PrefillResponse:
        self.prefills.append(request)
        if self.gate is not None:
            try:
                await self.gate.acquire()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return worker_pb2.PrefillResponse()


class ScriptedSupervisor(supervisor_pb2_grpc.SupervisorServiceServicer):
    def __init__(self, workers: list[ScriptedWorker]) -> None:
        self.workers = workers
        self._changed = asyncio.Condition()

    async def start(self) -> None:
        self.server = grpc.aio.server()
        supervisor_pb2_grpc.add_SupervisorServiceServicer_to_server(self, self.server)
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        await self.server.start()

    async def publish(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def WatchWorkers(
        self, request: supervisor_pb2.WatchWorkersRequest, context: Context
    ) -> AsyncIterator[supervisor_pb2.WatchWorkersResponse]:
        while True:
            workers = [worker.describe() for worker in self.workers]
            yield supervisor_pb2.WatchWorkersResponse(workers=workers, model=MODEL if workers else None)
            async with self._changed:
                await self._changed.wait()

    async def DrainWorker(
        self, request: supervisor_pb2.DrainWorkerRequest, context: Context
    ) -> admin_pb2.Worker:
        for worker in self.workers:
            if worker.worker_id == request.worker_id:
                worker.state = admin_pb2.WORKER_STATE_DRAINING
                await self.publish()
                return worker.describe()
        await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no worker {request.worker_id!r}")
        raise AssertionError
