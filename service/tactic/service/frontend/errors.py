"""Failures as clients see them: google.rpc.Status with ErrorInfo, BadRequest and RetryInfo."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from redis.exceptions import RedisError

from tactic.service.routing import NoWorkerError, WorkerRefusedError, WorkersLostError
from tactic.service.sessions import (
    AppendOpenError,
    LeaseLostError,
    SessionBusyError,
    SessionError,
    SessionExistsError,
    SessionNotFoundError,
    TurnExistsError,
    TurnNotFoundError,
    WrongOffsetError,
)
from tactic.service.text import TemplateRefusedError

DOMAIN = "tactic"
STATUS_KEY = "grpc-status-details-bin"
# When to try again after a failure that passes by itself.
RETRY_S = 1.0
# A status travels in the trailers, and gRPC takes no more than a few KiB of them.
MOST_VIOLATIONS = 8

Code = grpc.StatusCode


@dataclass(frozen=True)
class Violation:
    """A field of the request, and what is wrong with it."""

    field: str
    description: str


class ServiceError(Exception):
    """A refusal with everything that the client should know.

    Attributes:
        reason: machine-readable, UPPER_SNAKE_CASE.
        violations: fields to blame.
        metadata: values that belong to the reason.
        retry_s: seconds after which trying again may help; None if it does not.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        *,
        violations: Sequence[Violation] = (),
        metadata: Mapping[str, object] | None = None,
        retry_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.violations, self.metadata, self.retry_s = tuple(violations), metadata or {}, retry_s

    def status(self) -> status_pb2.Status:
        """Builds the status that travels in the trailers."""
        info = {key: str(value) for key, value in self.metadata.items()}
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=info)
        ]
        if self.violations:
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in self.violations
            ]
            details.append(error_details_pb2.BadRequest(field_violations=fields))
        if self.retry_s is not None:
            delay = duration_pb2.Duration(nanos=round(self.retry_s * 1e9) % 10**9, seconds=int(self.retry_s))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


def invalid(reason: str, *violations: Violation, **metadata: object) -> ServiceError:
    """Builds an INVALID_ARGUMENT that blames fields; of many, the first ones."""
    named = violations[:MOST_VIOLATIONS]
    parts = [f"{v.field}: {v.description}" for v in named]
    if more := len(violations) - len(named):
        parts.append(f"and {more} more")
    return ServiceError(Code.INVALID_ARGUMENT, reason, "; ".join(parts), violations=named, metadata=metadata)


@contextmanager
def session_named_by(field: str, *kinds: type[SessionError]) -> Iterator[None]:
    """Blames `field` for the refusals of these kinds inside the block, instead of `session_id`."""
    try:
        yield
    except kinds as error:
        if told := translate(error, field):
            raise told from error
        raise


def translate(error: Exception, session_field: str = "session_id") -> ServiceError | None:
    """Returns what a client is to be told of `error`, or None if it is a defect of ours.

    Args:
        error: any.
        session_field: field of the request that names the session.
    """
    message = str(error)

    def blame(field: str) -> list[Violation]:
        return [Violation(field, message)]

    match error:
        case ServiceError():
            return error
        case SessionNotFoundError():
            return ServiceError(Code.NOT_FOUND, "SESSION_NOT_FOUND", message, violations=blame(session_field))
        case SessionExistsError():
            return ServiceError(
                Code.ALREADY_EXISTS, "SESSION_EXISTS", message, violations=blame(session_field)
            )
        case SessionBusyError():
            holder = {"kind": error.kind, "id": error.holder_id}
            return ServiceError(
                Code.ABORTED, "SESSION_BUSY", message, violations=blame(session_field), metadata=holder
            )
        case AppendOpenError():
            append = {"append_id": error.append_id, "next_offset": error.next_offset}
            return ServiceError(
                Code.FAILED_PRECONDITION,
                "APPEND_OPEN",
                message,
                violations=blame(session_field),
                metadata=append,
            )
        case WrongOffsetError():
            return ServiceError(
                Code.OUT_OF_RANGE,
                "WRONG_OFFSET",
                message,
                violations=blame("chunk.offset"),
                metadata={"next_offset": error.expected},
            )
        case TurnExistsError():
            return ServiceError(Code.ALREADY_EXISTS, "TURN_EXISTS", message, violations=blame("turn_id"))
        case TurnNotFoundError():
            code, reason = (
                (Code.FAILED_PRECONDITION, "TURN_EXPIRED")
                if error.expired
                else (Code.NOT_FOUND, "TURN_NOT_FOUND")
            )
            return ServiceError(code, reason, message, violations=blame("turn_id"))
        case LeaseLostError():
            return ServiceError(Code.ABORTED, "LEASE_LOST", message)
        case TemplateRefusedError():
            return ServiceError(
                Code.INVALID_ARGUMENT, "TEMPLATE_REFUSED", message, violations=blame("messages")
            )
        case NoWorkerError():
            return ServiceError(Code.UNAVAILABLE, "NO_WORKER", message, retry_s=RETRY_S)
        case WorkersLostError():
            return ServiceError(Code.INTERNAL, "WORKERS_LOST", message)
        case WorkerRefusedError():
            return _from_worker(error)
        case RedisError():
            return ServiceError(
                Code.UNAVAILABLE,
                "STORE_UNAVAILABLE",
                f"the session store does not answer: {message}",
                retry_s=RETRY_S,
            )
    return None


def _from_worker(error: WorkerRefusedError) -> ServiceError:
    """What workers refuse is the request's fault or lack of room; the rest is a defect."""
    match error.error.code():
        case Code.INVALID_ARGUMENT | Code.FAILED_PRECONDITION | Code.OUT_OF_RANGE as code:
            return ServiceError(code, "WORKER_REFUSED", str(error))
        case Code.RESOURCE_EXHAUSTED as code:
            return ServiceError(code, "WORKERS_FULL", str(error), retry_s=RETRY_S)
        case _:
            return ServiceError(Code.INTERNAL, "WORKER_FAILED", str(error))
