"""gRPC errors with machine-readable details."""

from __future__ import annotations

from typing import NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "tactic"


async def refuse(
    context: grpc.aio.ServicerContext[Message, Message],
    code: int,
    reason: str,
    message: str,
    *,
    field: str = "",
    retry_s: float | None = None,
) -> NoReturn:
    """Ends a call with a google.rpc.Status: always ErrorInfo; BadRequest or RetryInfo where they apply.

    Args:
        context: of the call.
        code: from google.rpc.Code.
        reason: UPPER_SNAKE_CASE, for programs.
        message: for people; says what to do.
        field: path of the offending field.
        retry_s: seconds after which trying again makes sense.
    """
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN)]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_s is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(int(retry_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    packed = []
    for detail in details:
        any_detail = any_pb2.Any()
        any_detail.Pack(detail)
        packed.append(any_detail)
    status = status_pb2.Status(code=code, message=message, details=packed)
    await context.abort_with_status(rpc_status.to_status(status))  # type: ignore[attr-defined]  # not in the stubs
    raise AssertionError("abort_with_status returned")
