"""From a worker's tokens to the frames of a turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from tactic.service.routing import Dispatcher, Job, Placed
from tactic.service.text import OutputText, Piece
from tactic.v1 import generation_pb2, types_pb2
from tactic.worker.v1 import worker_pb2

Event = Placed | worker_pb2.GenerateResponse


class FrameStream:
    """Runs a job and numbers its frames."""

    def __init__(
        self, dispatcher: Dispatcher, job: Job, text: OutputText, *, turn_id: str, model: str, seq: int = 0
    ) -> None:
        """Prepares a run.

        Args:
            dispatcher: runs the job.
            job: what to generate; what it has generated already was carried by earlier frames.
            text: puts the output together; restored, if there was some.
            turn_id: goes into each frame.
            model: name of the model.
            seq: number of the last frame there was.
        """
        self._dispatcher = dispatcher
        self._job = job
        self._text = text
        self._turn_id = turn_id
        self._model = model
        self._seq = seq

    async def frames(self) -> AsyncGenerator[generation_pb2.GenerationFrame]:
        """Yields frames; the last one carries `finished`. Closing it cancels the job on its worker.

        What arrives while a frame is being taken care of goes into one next frame, so that slow clients and
        loaded front ends see fewer, larger ones; the first token waits for nothing.

        Raises:
            NoWorkerError, WorkerRefusedError: see Dispatcher.generate.
        """
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        reader = asyncio.create_task(self._read(events))
        try:
            while True:
                batch = [await events.get()]
                while not events.empty():
                    batch.append(events.get_nowait())
                finished: worker_pb2.GenerateFinished | None = None
                failure: Exception | None = None
                for event in batch:
                    match event:
                        case Exception():
                            failure = event
                        case Placed():
                            if self._seq == 0:
                                yield self._started(event.worker_id)
                        case worker_pb2.GenerateResponse():
                            self._push(event)
                            if event.HasField("finished"):
                                finished = event.finished
                ended = finished is not None or bool(self._text.stopped)
                piece = self._text.flush() if ended else self._text.take()
                if piece.token_ids:
                    yield self._delta(piece)
                if ended:
                    yield self._finished(finished or worker_pb2.GenerateFinished())
                    return
                if failure is not None:
                    raise failure
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    async def _read(self, events: asyncio.Queue[Event | Exception]) -> None:
        try:
            async with aclosing(self._dispatcher.generate(self._job)) as generated:
                async for event in generated:
                    events.put_nowait(event)
        except Exception as error:
            # It is raised where the frames are read, after what came before it.
            events.put_nowait(error)

    def _push(self, response: worker_pb2.GenerateResponse) -> None:
        for i, token_id in enumerate(response.token_ids):
            # A token that ends the turn is no part of its text, and the template writes it where it belongs.
            if self._text.stopped or token_id in self._job.stop_ids:
                return
            self._text.push(token_id, response.logprobs[i] if response.logprobs else None)

    def _next(self) -> generation_pb2.GenerationFrame:
        self._seq += 1
        return generation_pb2.GenerationFrame(seq=self._seq, turn_id=self._turn_id)

    def _started(self, worker_id: str) -> generation_pb2.GenerationFrame:
        frame = self._next()
        frame.started.prompt_tokens = len(self._job.prompt)
        frame.started.worker_id = worker_id
        frame.started.model = self._model
        return frame

    def _delta(self, piece: Piece) -> generation_pb2.GenerationFrame:
        frame = self._next()
        frame.delta.text = piece.text
        frame.delta.token_ids.extend(piece.token_ids)
        frame.delta.logprobs.extend(piece.logprobs)
        return frame

    def _finished(self, worker: worker_pb2.GenerateFinished) -> generation_pb2.GenerationFrame:
        frame = self._next()
        finished = frame.finished
        finished.reason = worker.reason
        if self._text.stopped:
            finished.reason = types_pb2.FINISH_REASON_STOP
            finished.stop = self._text.stopped
        # The worker's counts are of its last run; a turn may have had several.
        finished.usage.CopyFrom(worker.usage)
        finished.usage.prompt_tokens = len(self._job.prompt)
        finished.usage.completion_tokens = len(self._job.generated)
        if worker.HasField("attention"):
            finished.attention.CopyFrom(worker.attention)
        return frame
