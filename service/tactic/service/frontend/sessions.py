"""SessionService."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from tactic.service.frontend.appends import Appends
from tactic.service.frontend.errors import Violation, session_named_by
from tactic.service.frontend.model import ServedModel
from tactic.service.frontend.prefill import Prefiller
from tactic.service.frontend.turns import Turns
from tactic.service.frontend.validation import MAX_PAGE, check_labels, check_name, require
from tactic.service.sessions import AppendOpenError, Session, SessionError, SessionExistsError, SessionStore
from tactic.v1 import session_pb2, session_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
DEFAULT_PAGE = 100


class SessionService(session_pb2_grpc.SessionServiceServicer):
    """Long-lived contexts."""

    def __init__(
        self,
        sessions: SessionStore,
        appends: Appends,
        turns: Turns,
        prefiller: Prefiller,
        model: ServedModel,
    ) -> None:
        self._sessions = sessions
        self._appends = appends
        self._turns = turns
        self._prefiller = prefiller
        self._model = model

    async def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: Context
    ) -> session_pb2.Session:
        """Creates an empty session."""
        require(
            check_name("session_id", request.session_id, optional=True) + check_labels(request.labels.items())
        )
        model = self._model.check(request.model)
        session_id = request.session_id or uuid.uuid4().hex
        return to_proto(await self._sessions.create(session_id, model.name, request.labels))

    async def GetSession(
        self, request: session_pb2.GetSessionRequest, context: Context
    ) -> session_pb2.Session:
        """Reads a session."""
        require(check_name("session_id", request.session_id))
        return to_proto(await self._sessions.get(request.session_id))

    async def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: Context
    ) -> session_pb2.ListSessionsResponse:
        """Lists sessions in order of their ids; the page token is the last id of the page before."""
        found = check_name("page_token", request.page_token, optional=True)
        if request.page_size > MAX_PAGE:
            found.append(Violation("page_size", f"must be at most {MAX_PAGE}, not {request.page_size}"))
        require(found)
        size = request.page_size or DEFAULT_PAGE
        sessions = await self._sessions.page(size, request.page_token)
        more = sessions[-1].session_id if len(sessions) == size else ""
        return session_pb2.ListSessionsResponse(sessions=map(to_proto, sessions), next_page_token=more)

    async def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: Context
    ) -> session_pb2.DeleteSessionResponse:
        """Deletes a session; what runs on it ends."""
        require(check_name("session_id", request.session_id))
        self._prefiller.cancel(request.session_id)
        await self._sessions.delete(request.session_id)
        return session_pb2.DeleteSessionResponse()

    async def ForkSession(
        self, request: session_pb2.ForkSessionRequest, context: Context
    ) -> session_pb2.Session:
        """Creates a session with the log of another, without the turn that may be running on it."""
        require(
            check_name("session_id", request.session_id)
            + check_name("new_session_id", request.new_session_id, optional=True)
        )
        parent = await self._sessions.get(request.session_id)
        if parent.active_turn:
            await self._turns.settle(parent.session_id, parent.active_turn)
            parent = await self._sessions.get(request.session_id)
        if parent.append is not None:
            raise AppendOpenError(parent.session_id, parent.append.append_id, parent.append.next_offset)
        with session_named_by("new_session_id", SessionExistsError):
            child = await self._sessions.fork(parent, request.new_session_id or uuid.uuid4().hex)
        return to_proto(child)

    async def AppendContext(
        self, requests: AsyncIterator[session_pb2.AppendContextRequest], context: Context
    ) -> session_pb2.AppendContextResponse:
        """Takes streamed text into a session."""
        with session_named_by("header.session_id", SessionError):
            header, progress = await self._appends.run(requests)
            if progress.finished and (header.prefill or not header.HasField("prefill")):
                self._prefiller.start(header.session_id)
            session = await self._sessions.get(header.session_id)
        return session_pb2.AppendContextResponse(
            append_id=progress.append_id,
            bytes_accepted=progress.offset,
            tokens_appended=progress.tokens,
            finished=progress.finished,
            session=to_proto(session),
        )


def to_proto(session: Session) -> session_pb2.Session:
    """Returns what clients see of a session."""
    message = session_pb2.Session(
        session_id=session.session_id,
        model=session.model,
        token_count=session.tokens,
        turn_count=session.turns,
        create_time=_timestamp(session.created_ms),
        update_time=_timestamp(session.updated_ms),
        labels=session.labels,
        parent_session_id=session.parent,
        active_turn_id=session.active_turn,
        worker_id=session.worker,
    )
    if session.append is not None:
        message.append.append_id = session.append.append_id
        message.append.next_offset = session.append.next_offset
    return message


def _timestamp(milliseconds: int) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(datetime.fromtimestamp(milliseconds / 1000, UTC))
    return timestamp
