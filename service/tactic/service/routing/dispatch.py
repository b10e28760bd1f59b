"""Running a request on workers, and going on elsewhere when one dies."""

from __future__ import annotations

import asyncio
import logging
from array import array
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

import grpc

from tactic.service.routing.router import Assignment, Router
from tactic.v1 import types_pb2
from tactic.worker.v1 import worker_pb2

log = logging.getLogger(__name__)

MOST_LOSSES = 3


class WorkerRefusedError(Exception):
    """A worker has refused the request, and another would too.

    Attributes:
        error: what it answered.
    """

    def __init__(self, worker_id: str, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"worker {worker_id}: {error.details()}")
        self.error = error


@dataclass
class Job:
    """What to generate.

    Attributes:
        prompt: token ids, an array of type "I".
        sampling: with `max_tokens` set; counts the tokens in `generated`, too.
        tactic: options of the sparse attention.
        stop_ids: token ids that end the output.
        worker: preferred worker; then the one that runs it.
        generated: token ids that are there already; grows.
    """

    prompt: array[int]
    sampling: types_pb2.SamplingOptions
    tactic: types_pb2.TacticOptions
    stop_ids: frozenset[int]
    worker: str = ""
    generated: array[int] = field(default_factory=lambda: array("I"))

    @property
    def left(self) -> int:
        """Tokens that may still be generated."""
        return self.sampling.max_tokens - len(self.generated)

    @property
    def ended(self) -> bool:
        """Whether the last token ends the output."""
        return bool(self.generated) and self.generated[-1] in self.stop_ids


@dataclass(frozen=True)
class Placed:
    """A worker has been chosen; more than once if one dies."""

    worker_id: str


class WorkersLostError(Exception):
    """Several workers in a row died before this request got a token: it may be what kills them."""

    def __init__(self) -> None:
        super().__init__(f"{MOST_LOSSES} workers in a row were lost before this request got another token")


class _WorkerLostError(Exception):
    """The worker died, or hung up in the middle."""


class Dispatcher:
    """Runs jobs. A worker's death costs time, but no token and no job."""

    def __init__(self, router: Router, worker_wait_s: float) -> None:
        self._router = router
        self._wait_s = worker_wait_s

    async def generate(self, job: Job) -> AsyncGenerator[Placed | worker_pb2.GenerateResponse]:
        """Yields where the job is placed and what it generates; the last response carries `finished`.

        Closing the iterator cancels the request on its worker.

        Raises:
            NoWorkerError: no worker is ready, or was again in time after one died.
            WorkerRefusedError: the worker does not take the request.
            WorkersLostError: the request is not tried on yet another worker.
        """
        table, full, losses = self._router.table, set[str](), 0
        while job.left > 0 and not job.ended:
            if losses:
                await table.wait_ready(self._wait_s)
            before = len(job.generated)
            tokens = len(job.prompt) + before
            async with self._router.assign(tokens, "turn", preferred=job.worker, without=full) as assignment:
                worker = assignment.worker
                job.worker = worker.worker_id
                yield Placed(worker.worker_id)
                try:
                    async with aclosing(self._stream(job, assignment)) as responses:
                        async for response in responses:
                            yield response
                            if response.HasField("finished"):
                                return
                except _WorkerLostError as error:
                    generated = len(job.generated)
                    log.warning("worker %s was lost after %d tokens: %s", worker.worker_id, generated, error)
                    table.suspect(worker)
                    losses = losses + 1 if generated == before else 1
                    if losses == MOST_LOSSES:
                        raise WorkersLostError from error
                except grpc.aio.AioRpcError as error:
                    # Its queue is full; another's may not be.
                    full.add(worker.worker_id)
                    others = {other.worker_id for other in table.ready()} - full
                    if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or not others:
                        raise WorkerRefusedError(worker.worker_id, error) from error
        # All there is to generate was there already: only the worker's last word was lost.
        reason = types_pb2.FINISH_REASON_STOP if job.ended else types_pb2.FINISH_REASON_LENGTH
        yield worker_pb2.GenerateResponse(finished=worker_pb2.GenerateFinished(reason=reason))

    async def prefill(self, prompt: array[int], preferred: str) -> str:
        """Has a worker compute and keep a prompt's KV cache and index; returns its id.

        Raises:
            NoWorkerError: no worker is ready.
            grpc.aio.AioRpcError: it failed; nothing depends on it.
        """
        async with self._router.assign(len(prompt), "prefill", preferred=preferred) as assignment:
            request = worker_pb2.PrefillRequest(request_id=assignment.request_id, token_ids=prompt)
            await assignment.stub.Prefill(request)
            return assignment.worker.worker_id

    async def _stream(self, job: Job, assignment: Assignment) -> AsyncGenerator[worker_pb2.GenerateResponse]:
        """Yields responses up to the one that carries `finished`."""
        sampling = types_pb2.SamplingOptions()
        sampling.CopyFrom(job.sampling)
        sampling.ClearField("stop")
        sampling.max_tokens = job.left
        request = worker_pb2.GenerateRequest(
            request_id=assignment.request_id,
            token_ids=job.prompt + job.generated,
            sampling=sampling,
            tactic=job.tactic,
            stop_token_ids=sorted(job.stop_ids),
        )
        call = assignment.call = assignment.stub.Generate(request)
        try:
            async for response in call:
                job.generated.extend(response.token_ids)
                yield response
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not assignment.lost or (task is not None and task.cancelling()):
                raise
            raise _WorkerLostError("the supervisor has reported its death") from None
        except grpc.aio.AioRpcError as error:
            # A worker that is being stopped cancels its streams.
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                raise
            raise _WorkerLostError(error.details()) from error
        finally:
            call.cancel()
        raise _WorkerLostError("its stream ended early")
