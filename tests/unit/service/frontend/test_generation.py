"""How tokens become frames."""

import asyncio
from array import array
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from tactic.service.frontend.generation import FrameStream
from tactic.service.routing import Job, Placed
from tactic.service.text import OutputText, TextTokenizer
from tactic.v1 import types_pb2
from tactic.worker.v1 import worker_pb2


class Arrivals:
    """Stands for the dispatcher: tokens arrive when the test says so."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[worker_pb2.GenerateResponse] = asyncio.Queue()

    async def generate(self, job: Job) -> AsyncIterator[Any]:
        yield Placed("w0")
        while True:
            response = await self.queue.get()
            job.generated.extend(response.token_ids)
            yield response

    def arrive(self, *token_ids: int) -> None:
        self.queue.put_nowait(worker_pb2.GenerateResponse(token_ids=token_ids))


async def test_first_token_waits_for_nothing_and_the_others_for_the_client(checkpoint: Any) -> None:
    vocabulary = TextTokenizer(checkpoint).vocabulary
    arrivals = Arrivals()
    job = Job(array("I", [1]), types_pb2.SamplingOptions(), types_pb2.TacticOptions(), frozenset())
    stream = FrameStream(arrivals, job, OutputText(vocabulary), turn_id="t", model="m")  # type: ignore[arg-type]
    async with aclosing(stream.frames()) as frames:
        assert (await anext(frames)).HasField("started")
        arrivals.arrive(70)
        assert (await anext(frames)).delta.token_ids == [70]
        # The client is slow, and meanwhile these come one by one.
        for token_id in range(71, 75):
            arrivals.arrive(token_id)
            await asyncio.sleep(0)
        assert (await anext(frames)).delta.token_ids == [71, 72, 73, 74]
        finished = worker_pb2.GenerateFinished(reason=types_pb2.FINISH_REASON_LENGTH)
        arrivals.queue.put_nowait(worker_pb2.GenerateResponse(finished=finished))
        last = await anext(frames)
        assert (last.seq, last.finished.usage.completion_tokens) == (4, 5)
