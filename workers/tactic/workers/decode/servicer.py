"""tactic.worker.v1.WorkerService over one SGLang engine."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from google.rpc import code_pb2

from tactic.v1.admin_pb2 import Model, WorkerStats
from tactic.v1.types_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    AttentionStats,
    TokenLogprob,
    Usage,
)
from tactic.worker.v1 import worker_pb2 as pb
from tactic.worker.v1.worker_pb2_grpc import WorkerServiceServicer
from tactic.workers import errors
from tactic.workers.decode.hub import SchedulerHub
from tactic.workers.decode.reports import attention_stats, worker_stats
from tactic.workers.decode.validate import (
    InvalidRequestError,
    check_prompt,
    sampling_parameters,
    tactic_parameters,
)

_REASONS = {
    "stop": FINISH_REASON_STOP,
    "length": FINISH_REASON_LENGTH,
    "abort": FINISH_REASON_CANCELLED,
}


class WorkerServicer(WorkerServiceServicer):
    """Streams tokens from the engine to front ends.

    Args:
        worker_id: this worker's name in the deployment.
        engine: a running `sgl.Engine`.
        hub: of its scheduler processes.
        model: what it serves.
    """

    def __init__(self, worker_id: str, engine: Any, hub: SchedulerHub, model: Model) -> None:
        self.worker_id = worker_id
        self.model = model
        self.draining = False
        self._engine = engine
        self._hub = hub
        self._waiting = 0
        self._running = 0
        self._kv_tokens = hub.hellos[0].kv_tokens
        self._index_bytes = sum(h.index_bytes for h in hub.hellos.values())

    async def GetStats(
        self, request: pb.GetStatsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> WorkerStats:
        """Counters and gauges."""
        return self.stats()

    def stats(self) -> WorkerStats:
        """Counters and gauges."""
        stats = worker_stats(self._hub.gauges.values(), self._index_bytes, self._kv_tokens)
        stats.running_requests, stats.waiting_requests = self._running, self._waiting
        return stats

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateResponse]:
        """Generates until a stop token, max_tokens or the end of the context."""
        try:
            self._check_prompt(request.request_id, request.token_ids)
            room = self.model.context_length - len(request.token_ids)
            parameters = sampling_parameters(request.sampling, room=room, seed=secrets.randbits(31))
            parameters["stop_token_ids"] = list(request.stop_token_ids)
            parameters["custom_params"] = tactic_parameters(request.tactic)
        except InvalidRequestError as error:
            await self._refuse(context, error)
        await self._refuse_if_draining(context)
        logprobs = request.sampling.logprobs if request.sampling.HasField("logprobs") else None
        run = self._run(request.request_id, request.token_ids, parameters, logprobs)
        async with contextlib.aclosing(run) as outputs:
            async for output in outputs:
                meta = output["meta_info"]
                response = pb.GenerateResponse(
                    token_ids=output["output_ids"], logprobs=_logprobs(meta) if logprobs is not None else ()
                )
                if meta["finish_reason"]:
                    await self._check_finish(context, meta["finish_reason"])
                    response.finished.reason = _REASONS[meta["finish_reason"]["type"]]
                    response.finished.usage.CopyFrom(_usage(meta))
                    response.finished.attention.CopyFrom(await self._attention(request.request_id, meta))
                yield response

    async def Prefill(
        self, request: pb.PrefillRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.PrefillResponse:
        """Fills the prefix cache and the index with a prompt."""
        try:
            self._check_prompt(request.request_id, request.token_ids)
        except InvalidRequestError as error:
            await self._refuse(context, error)
        await self._refuse_if_draining(context)
        parameters = {"max_new_tokens": 0, "temperature": 0.0, "sampling_seed": 0}
        run = self._run(request.request_id, request.token_ids, parameters, None)
        async with contextlib.aclosing(run) as outputs:
            async for output in outputs:
                meta = output["meta_info"]
                if meta["finish_reason"]:
                    await self._check_finish(context, meta["finish_reason"])
                    attention = await self._attention(request.request_id, meta)
                    return pb.PrefillResponse(usage=_usage(meta), attention=attention)
        raise AssertionError("the engine ended a request without a reason")

    async def _run(
        self, request_id: str, token_ids: Any, parameters: dict[str, Any], logprobs: int | None
    ) -> AsyncGenerator[dict[str, Any]]:
        """The engine's stream; whatever ends it early aborts the request there."""
        self._waiting += 1
        started = finished = False
        try:
            stream = await self._engine.async_generate(
                input_ids=list(token_ids),
                sampling_params=parameters,
                stream=True,
                rid=request_id,
                return_logprob=logprobs is not None,
                top_logprobs_num=logprobs or 0,
            )
            async for output in stream:
                if not started:
                    started = True
                    self._waiting, self._running = self._waiting - 1, self._running + 1
                finished = output["meta_info"]["finish_reason"] is not None
                yield output
        finally:
            if started:
                self._running -= 1
            else:
                self._waiting -= 1
            if not finished:
                self._engine.tokenizer_manager.abort_request(rid=request_id)

    async def _attention(self, request_id: str, meta: dict[str, Any]) -> AttentionStats:
        stays = 1 + int(meta.get("num_retractions") or 0)
        return attention_stats(await self._hub.take_reports(request_id, stays))

    def _check_prompt(self, request_id: str, token_ids: Any) -> None:
        check_prompt(
            request_id, token_ids, vocabulary=self.model.vocabulary_size, limit=self.model.context_length
        )

    async def _refuse(self, context: grpc.aio.ServicerContext[Any, Any], error: InvalidRequestError) -> None:
        await errors.refuse(
            context, code_pb2.INVALID_ARGUMENT, "INVALID_REQUEST", str(error), field=error.field
        )

    async def _refuse_if_draining(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        if self.draining:
            message = f"worker {self.worker_id} is draining; another one must take the request"
            await errors.refuse(context, code_pb2.UNAVAILABLE, "WORKER_DRAINING", message, retry_s=1.0)

    async def _check_finish(
        self, context: grpc.aio.ServicerContext[Any, Any], reason: dict[str, Any]
    ) -> None:
        """The engine aborts what it can't run; tell why."""
        if reason["type"] == "abort" and reason.get("status_code"):
            await errors.refuse(
                context, code_pb2.INTERNAL, "ENGINE_ABORTED", f"the engine gave up: {reason.get('message')}"
            )


def _usage(meta: dict[str, Any]) -> Usage:
    return Usage(
        prompt_tokens=meta["prompt_tokens"],
        completion_tokens=meta["completion_tokens"],
        prefix_tokens_reused=meta["cached_tokens"],
    )


def _logprobs(meta: dict[str, Any]) -> list[TokenLogprob]:
    chosen, tops = meta["output_token_logprobs"], meta["output_top_logprobs"]
    return [
        TokenLogprob(
            token_id=token,
            logprob=logprob,
            top=[TokenLogprob(token_id=t, logprob=p) for p, t, _ in top or ()],
        )
        for (logprob, token, _), top in zip(chosen, tops or [None] * len(chosen), strict=False)
    ]
