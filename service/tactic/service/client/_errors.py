"""gRPC statuses as typed exceptions that carry the details of google.rpc.Status."""

from dataclasses import dataclass
from typing import cast

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that was refused, and why."""

    field: str
    description: str


class TacticError(Exception):
    """A call failed.

    Attributes:
        code: the gRPC status.
        message: what the server says.
        reason: machine-readable reason, for example "SESSION_NOT_FOUND"; empty if the server gave none.
        metadata: values that belong to the reason.
        violations: the fields that were refused.
        retry_after_s: seconds after which the server expects a repetition to succeed; None if it does not.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        message: str,
        *,
        reason: str = "",
        metadata: dict[str, str] | None = None,
        violations: tuple[FieldViolation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.metadata = metadata or {}
        self.violations = violations
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        missing = [
            f"{violation.field}: {violation.description}"
            for violation in self.violations
            if violation.description not in self.message
        ]
        return "; ".join([self.message, *missing])


class InvalidRequestError(TacticError):
    """A field of the request is wrong; `violations` names it."""


class NotFoundError(TacticError):
    """There is no such session, turn, model or worker."""


class AlreadyExistsError(TacticError):
    """There is one of that name already."""


class ConflictError(TacticError):
    """The session is not in a state that allows this, for example because a turn is running on it."""


class ResourceExhaustedError(TacticError):
    """A limit is reached."""


class DeadlineExceededError(TacticError):
    """Time was up."""


class UnavailableError(TacticError):
    """No front end answers, or it has no worker ready."""


_BY_CODE: dict[grpc.StatusCode, type[TacticError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.ABORTED: ConflictError,
    grpc.StatusCode.FAILED_PRECONDITION: ConflictError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
}

# What gRPC reports when a stream ends under a write, before it knows the real status.
WRITE_FAILED = "Internal error from Core"


def from_rpc_error(error: grpc.aio.AioRpcError, target: str) -> TacticError:
    """Builds the typed exception of a failed call to `target` (host:port)."""
    code = error.code()
    try:
        # It has the three accessors of a Call that are asked for.
        status = rpc_status.from_call(cast(grpc.Call, error))
    except ValueError:
        # The call ended otherwise than its details say, for example because the status itself was too large.
        status = None
    if status is None and code is grpc.StatusCode.UNAVAILABLE:
        return UnavailableError(code, f"no front end answers at {target} ({error.details()})")
    if code is grpc.StatusCode.INTERNAL and (error.details() or "").startswith(WRITE_FAILED):
        return UnavailableError(grpc.StatusCode.UNAVAILABLE, f"the stream to {target} broke off")
    reason, metadata, violations, retry_after_s = "", {}, [], None
    for detail in status.details if status else ():
        if detail.Unpack(info := error_details_pb2.ErrorInfo()):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad := error_details_pb2.BadRequest()):
            violations += [FieldViolation(each.field, each.description) for each in bad.field_violations]
        elif detail.Unpack(retry := error_details_pb2.RetryInfo()):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    return _BY_CODE.get(code, TacticError)(
        code,
        error.details() or code.name,
        reason=reason,
        metadata=metadata,
        violations=tuple(violations),
        retry_after_s=retry_after_s,
    )
