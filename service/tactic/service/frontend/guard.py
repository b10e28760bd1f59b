"""Around every method: size, syntax and deadline of the request, and failures as statuses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from tactic.service.frontend.errors import STATUS_KEY, Code, ServiceError, Violation, translate

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[Any, Context], Awaitable[Any]]
# gRPC itself refuses larger messages, but cannot say more than that.
HARD_LIMIT_FACTOR = 2
# A call that arrives with less time than this cannot be answered in it, so it is not begun. (A deadline that
# has passed at the client arrives as a very short one.)
LEAST_TIME_S = 0.005


@dataclass(frozen=True)
class _Unreadable:
    """Stands for a message that could not be accepted."""

    error: ServiceError


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # not generic at run time
    """Wraps the methods of `tactic.v1`; leaves health and reflection alone."""

    def __init__(self, max_message_bytes: int) -> None:
        self._limit = max_message_bytes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Returns the method's handler, wrapped."""
        # Its methods are typed as those of synchronous servers.
        handler: Any = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith("/tactic."):
            return cast("grpc.RpcMethodHandler[Any, Any]", handler)
        read = self._reader(handler.request_deserializer)
        write = handler.response_serializer
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(
                _guarded(handler.stream_unary, streams=True), read, write
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_guarded(handler.unary_stream), read, write)
        return grpc.unary_unary_rpc_method_handler(_guarded(handler.unary_unary), read, write)

    def _reader(self, parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
        def read(data: bytes) -> Any:
            if len(data) > self._limit:
                text = f"the message has {len(data)} bytes; at most {self._limit} are taken"
                return _Unreadable(
                    ServiceError(
                        Code.RESOURCE_EXHAUSTED,
                        "MESSAGE_TOO_LARGE",
                        text,
                        violations=[Violation("message", text)],
                        metadata={"limit": self._limit, "size": len(data)},
                    )
                )
            try:
                return parse(data)
            except DecodeError as error:
                text = f"the message cannot be read, is all its text UTF-8? ({error})"
                return _Unreadable(
                    ServiceError(
                        Code.INVALID_ARGUMENT,
                        "MALFORMED_MESSAGE",
                        text,
                        violations=[Violation("message", text)],
                    )
                )

        return read


def _guarded(method: Method, *, streams: bool = False) -> Any:
    async def guarded(request: Any, context: Context) -> Any:
        try:
            left = context.time_remaining()
            if left is not None and left < LEAST_TIME_S:
                raise _deadline_exceeded()
            try:
                async with asyncio.timeout(left):
                    return await method(_readable(request) if streams else _accept(request), context)
            except TimeoutError:
                raise _deadline_exceeded() from None
        except grpc.aio.InternalError:
            # A frame could not be written: the client has gone, before the cancellation came through.
            raise asyncio.CancelledError from None
        except Exception as error:
            told = translate(error)
            if told is None:
                log.exception("a defect in %s", getattr(method, "__qualname__", method))
                told = ServiceError(Code.INTERNAL, "INTERNAL", f"{type(error).__name__}: {error}")
            trailers = ((STATUS_KEY, told.status().SerializeToString()),)
            return await context.abort(told.code, told.message, trailers)

    return guarded


def _accept(request: Any) -> Any:
    if isinstance(request, _Unreadable):
        raise request.error
    return request


async def _readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _accept(request)


def _deadline_exceeded() -> ServiceError:
    return ServiceError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "the call's deadline has passed")
