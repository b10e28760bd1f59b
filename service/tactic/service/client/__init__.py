"""Typed asynchronous client of a Tactic deployment.

async with TacticClient("127.0.0.1:7700") as client:
    session = await client.create_session()
    await client.append_context(session.session_id, book)
    async for event in client.chat("Who is the landlady?", session_id=session.session_id):
        if isinstance(event, TextDelta):
            print(event.text, end="")
"""

from tactic.service.client._append import AppendProgress
from tactic.service.client._client import TacticClient
from tactic.service.client._errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    FieldViolation,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    TacticError,
    UnavailableError,
)
from tactic.service.client._events import Answer, Event, TextDelta, TurnFinished, TurnStarted
from tactic.service.client._timeouts import Timeouts
from tactic.v1.admin_pb2 import Model, Worker, WorkerKind, WorkerState, WorkerStats
from tactic.v1.generation_pb2 import Message
from tactic.v1.session_pb2 import Session
from tactic.v1.types_pb2 import (
    AttentionMode,
    AttentionStats,
    FinishReason,
    SamplingOptions,
    TacticOptions,
    TokenLogprob,
    Usage,
)

__all__ = [
    "AlreadyExistsError",
    "Answer",
    "AppendProgress",
    "AttentionMode",
    "AttentionStats",
    "ConflictError",
    "DeadlineExceededError",
    "Event",
    "FieldViolation",
    "FinishReason",
    "InvalidRequestError",
    "Message",
    "Model",
    "NotFoundError",
    "ResourceExhaustedError",
    "SamplingOptions",
    "Session",
    "TacticClient",
    "TacticError",
    "TacticOptions",
    "TextDelta",
    "Timeouts",
    "TokenLogprob",
    "TurnFinished",
    "TurnStarted",
    "UnavailableError",
    "Usage",
    "Worker",
    "WorkerKind",
    "WorkerState",
    "WorkerStats",
]
