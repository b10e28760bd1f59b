"""CompletionService."""

from __future__ import annotations

import asyncio
import uuid
from array import array
from contextlib import aclosing
from typing import Any

import grpc

from tactic.service.frontend.drain import Drain
from tactic.service.frontend.errors import Violation
from tactic.service.frontend.generation import FrameStream
from tactic.service.frontend.model import ServedModel
from tactic.service.frontend.turns import Turns
from tactic.service.frontend.validation import check_room, check_sampling, check_tactic, require
from tactic.service.routing import Dispatcher
from tactic.service.text import OutputText
from tactic.v1 import generation_pb2, generation_pb2_grpc


class CompletionService(generation_pb2_grpc.CompletionServiceServicer):
    """Plain completion of a text or of token ids, without template or session."""

    def __init__(self, turns: Turns, dispatcher: Dispatcher, model: ServedModel, drain: Drain) -> None:
        self._turns = turns
        self._dispatcher = dispatcher
        self._model = model
        self._drain = drain

    async def Complete(  # type: ignore[override]  # writes to the context instead of yielding
        self, request: generation_pb2.CompleteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        """Streams the frames of a completion."""
        require(check_sampling(request.sampling) + check_tactic(request.tactic))
        async with self._drain.turn():
            model = self._model.check(request.model)
            prompt = await self._prompt(request, model.vocabulary_size)
            check_room(request.WhichOneof("prompt") or "prompt", len(prompt), model.context_length)
            text = OutputText(self._model.tokenizer.vocabulary, request.sampling.stop)
            job = self._turns.job(prompt, request.sampling, request.tactic)
            stream = FrameStream(self._dispatcher, job, text, turn_id=uuid.uuid4().hex, model=model.name)
            async with aclosing(stream.frames()) as frames:
                async for frame in frames:
                    await context.write(frame)

    async def _prompt(self, request: generation_pb2.CompleteRequest, vocabulary_size: int) -> array[int]:
        if request.HasField("tokens"):
            prompt = array("I", request.tokens.ids)
            require(
                Violation(f"tokens.ids[{i}]", f"must be below {vocabulary_size}, not {token_id}")
                for i, token_id in enumerate(prompt)
                if token_id >= vocabulary_size
            )
        else:
            prompt = await asyncio.to_thread(
                self._model.tokenizer.encode, request.text, special=True, bos=bool(request.text)
            )
        if not prompt:
            require([Violation("prompt", "must not be empty: set text or tokens")])
        return prompt
