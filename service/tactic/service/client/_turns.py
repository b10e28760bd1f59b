"""Streams of frames that survive a broken connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from tactic.service.client._errors import DeadlineExceededError, TacticError, from_rpc_error
from tactic.service.client._events import Event, TurnFinished, from_frame
from tactic.service.client._retry import Patience
from tactic.service.client._timeouts import Timeouts
from tactic.v1.generation_pb2 import GenerationFrame

FrameCall = grpc.aio.UnaryStreamCall[Any, GenerationFrame]


async def events(
    open_stream: Callable[[int, float | None], FrameCall], resumable: bool, timeouts: Timeouts, target: str
) -> AsyncIterator[Event]:
    """Yields the events of one turn, each once and in order.

    Args:
        open_stream: makes the call, given the seq of the last frame seen (0: none) and the seconds left.
        resumable: whether the stream can be attached to again after its first frame.
        timeouts: limits.
        target: host:port, for messages.

    Raises:
        TacticError: if the turn fails, or cannot be attached to again in time.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeouts.turn is None else loop.time() + timeouts.turn
    patience = Patience(timeouts.reconnect)
    seen = 0
    while True:
        left = None if deadline is None else deadline - loop.time()
        if left is not None and left <= 0:
            raise DeadlineExceededError(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"the turn did not end within {timeouts.turn} s"
            )
        call = open_stream(seen, left)
        try:
            while (frame := await _next_frame(call, timeouts.silence)) is not None:
                patience.renew()
                if frame.seq <= seen:
                    continue
                seen = frame.seq
                event = from_frame(frame)
                yield event
                if isinstance(event, TurnFinished):
                    return
            error: TacticError = TacticError(
                grpc.StatusCode.DATA_LOSS, "the stream ended without a last frame"
            )
        except grpc.aio.AioRpcError as rpc_error:
            error = from_rpc_error(rpc_error, target)
        finally:
            # Also when the consumer stops early: that is how a turn is cancelled.
            call.cancel()
        if seen and not resumable:
            raise error
        await patience.after(error)


async def _next_frame(call: FrameCall, silence_s: float | None) -> GenerationFrame | None:
    try:
        async with asyncio.timeout(silence_s):
            frame = await call.read()
    except TimeoutError:
        raise DeadlineExceededError(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"no frame arrived for {silence_s} s"
        ) from None
    return frame if isinstance(frame, GenerationFrame) else None
