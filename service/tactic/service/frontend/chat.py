"""ChatService."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import aclosing
from typing import Any

import grpc

from tactic.service.frontend.drain import Drain
from tactic.service.frontend.errors import Violation
from tactic.service.frontend.generation import FrameStream
from tactic.service.frontend.model import ServedModel
from tactic.service.frontend.turns import Turns
from tactic.service.frontend.validation import (
    check_messages,
    check_name,
    check_room,
    check_sampling,
    check_tactic,
    plain_messages,
    require,
)
from tactic.service.routing import Dispatcher
from tactic.service.text import OutputText
from tactic.v1 import generation_pb2, generation_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class ChatService(generation_pb2_grpc.ChatServiceServicer):
    """Chat turns, on a session or without one."""

    def __init__(self, turns: Turns, dispatcher: Dispatcher, model: ServedModel, drain: Drain) -> None:
        self._turns = turns
        self._dispatcher = dispatcher
        self._model = model
        self._drain = drain

    async def ChatCompletion(  # type: ignore[override]  # writes to the context instead of yielding
        self, request: generation_pb2.ChatCompletionRequest, context: Context
    ) -> None:
        """Streams the frames of a turn."""
        require(_check(request))
        turn_id = request.turn_id or uuid.uuid4().hex
        async with self._drain.turn():
            if request.session_id:
                await self._turns.chat(request, turn_id, context.write)
            else:
                await self._single(request, turn_id, context)

    async def _single(
        self, request: generation_pb2.ChatCompletionRequest, turn_id: str, context: Context
    ) -> None:
        model = self._model.check(request.model)
        messages = plain_messages(request.messages)
        prompt = await asyncio.to_thread(self._model.template.prompt, "", 0, messages)
        check_room("messages", len(prompt), model.context_length)
        text = OutputText(self._model.tokenizer.vocabulary, request.sampling.stop)
        job = self._turns.job(prompt, request.sampling, request.tactic)
        stream = FrameStream(self._dispatcher, job, text, turn_id=turn_id, model=model.name)
        async with aclosing(stream.frames()) as frames:
            async for frame in frames:
                await context.write(frame)


def _check(request: generation_pb2.ChatCompletionRequest) -> list[Violation]:
    found = check_name("session_id", request.session_id, optional=True)
    found += check_name("turn_id", request.turn_id, optional=True)
    found += check_sampling(request.sampling) + check_tactic(request.tactic)
    if not request.HasField("resume_after_seq"):
        return found + check_messages(request.messages)
    if not request.session_id:
        found.append(
            Violation("resume_after_seq", "needs session_id: only turns on a session can be resumed")
        )
    if not request.turn_id:
        found.append(Violation("turn_id", "must name the turn to resume"))
    return found
