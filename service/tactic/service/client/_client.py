"""The client itself: one channel, one method per thing to do."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from types import TracebackType
from typing import Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tactic.service.client._append import Appender, AppendProgress, Text
from tactic.service.client._errors import AlreadyExistsError, NotFoundError, TacticError, from_rpc_error
from tactic.service.client._events import Event
from tactic.service.client._retry import repeat
from tactic.service.client._timeouts import Timeouts
from tactic.service.client._turns import FrameCall, events
from tactic.v1 import admin_pb2, admin_pb2_grpc, generation_pb2_grpc, session_pb2_grpc
from tactic.v1 import generation_pb2 as generation
from tactic.v1 import session_pb2 as sessions
from tactic.v1.types_pb2 import SamplingOptions, TacticOptions

DEFAULT_ADDRESS = "127.0.0.1:7700"
MAX_MESSAGE_BYTES = 64 * 2**20
PAGE_SIZE = 1000
# A front end whose host vanishes says nothing more, not even that it is gone: it is asked while calls run. It
# takes pings every 10 s or more.
KEEPALIVE = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    # Else they cease after two while the client only listens, as it does in a turn.
    ("grpc.http2.max_pings_without_data", 0),
]

Response = TypeVar("Response")


class TacticClient:
    """Speaks to one front end. Use it as an asynchronous context manager.

    Calls that are safe to repeat are repeated while the front end does not answer, for `timeouts.reconnect`
    seconds; turns and appends go on where they stood. Every failure is a TacticError.
    """

    def __init__(self, address: str = DEFAULT_ADDRESS, timeouts: Timeouts | None = None) -> None:
        """Prepares a client; nothing is sent before the first call.

        Args:
            address: host:port of a front end.
            timeouts: limits; None takes the defaults of `Timeouts`.
        """
        self._address = address
        self._timeouts = timeouts or Timeouts()
        self._channel = grpc.aio.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                # A front end that comes back is found again within a second or two.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
                *KEEPALIVE,
            ],
        )
        self._sessions = session_pb2_grpc.SessionServiceStub(self._channel)
        self._chat = generation_pb2_grpc.ChatServiceStub(self._channel)
        self._completion = generation_pb2_grpc.CompletionServiceStub(self._channel)
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; running turns are cancelled."""
        await self._channel.close(grace=None)

    # Sessions

    async def create_session(
        self, session_id: str = "", *, model: str = "", labels: Mapping[str, str] | None = None
    ) -> sessions.Session:
        """Creates a session.

        Args:
            session_id: 1 to 64 characters of [A-Za-z0-9_-]; empty makes one.
            model: empty takes the only one served.
            labels: free text to find it by.

        Raises:
            AlreadyExistsError: if there is a session of that name.
        """
        name = session_id or uuid.uuid4().hex
        request = sessions.CreateSessionRequest(session_id=name, model=model, labels=labels)
        return await self._create_once(self._sessions.CreateSession, request, name)

    async def get_session(self, session_id: str) -> sessions.Session:
        """Returns the present state of a session; raises NotFoundError if there is none."""
        return await self._repeat(
            self._sessions.GetSession, sessions.GetSessionRequest(session_id=session_id)
        )

    async def list_sessions(self) -> AsyncIterator[sessions.Session]:
        """Yields all sessions, page by page."""
        token = ""
        while True:
            request = sessions.ListSessionsRequest(page_size=PAGE_SIZE, page_token=token)
            page = await self._repeat(self._sessions.ListSessions, request)
            for session in page.sessions:
                yield session
            token = page.next_page_token
            if not token:
                return

    async def delete_session(self, session_id: str) -> None:
        """Deletes a session with everything in it; raises NotFoundError if there is none."""
        attempts = 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            try:
                await self._call(
                    self._sessions.DeleteSession, sessions.DeleteSessionRequest(session_id=session_id)
                )
            except NotFoundError:
                # An earlier attempt did it, and its answer was lost.
                if attempts == 1:
                    raise

        await repeat(attempt, self._timeouts.reconnect)

    async def fork_session(self, session_id: str, new_session_id: str = "") -> sessions.Session:
        """Creates a session that starts with the tokens of another one; the KV prefix is shared.

        Raises:
            NotFoundError: if there is no session `session_id`.
            AlreadyExistsError: if there is a session `new_session_id`.
        """
        name = new_session_id or uuid.uuid4().hex
        request = sessions.ForkSessionRequest(session_id=session_id, new_session_id=name)
        return await self._create_once(self._sessions.ForkSession, request, name)

    async def append_context(
        self,
        session_id: str,
        text: Text,
        *,
        append_id: str = "",
        prefill: bool = True,
        on_progress: Callable[[AppendProgress], None] = lambda progress: None,
    ) -> sessions.AppendContextResponse:
        """Streams text into a session. Each acknowledged byte is durable.

        A broken connection is resumed. To resume after the death of this client, give the same `append_id`
        and the same text again: what the server has already is skipped.

        Args:
            session_id: the session.
            text: UTF-8, as one string or in pieces.
            append_id: 1 to 64 characters of [A-Za-z0-9_-]; empty makes one.
            prefill: start computing the KV cache as soon as the text is complete.
            on_progress: is told after each acknowledgement, about once per MiB.

        Raises:
            NotFoundError: if there is no such session.
            InvalidRequestError: if the text is not UTF-8 or exceeds the model's context.
            ConflictError: if a turn or another append is in progress.
        """
        header = sessions.AppendHeader(
            session_id=session_id, append_id=append_id or uuid.uuid4().hex, prefill=prefill
        )
        appender = Appender(
            header,
            lambda requests: self._call(self._sessions.AppendContext, iter(requests)),
            lambda: self.get_session(session_id),
            self._timeouts.reconnect,
            on_progress,
        )
        return await appender.run(text)

    # Generation

    def chat(
        self,
        messages: str | Sequence[generation.Message],
        *,
        session_id: str = "",
        model: str = "",
        sampling: SamplingOptions | None = None,
        tactic: TacticOptions | None = None,
        turn_id: str = "",
    ) -> AsyncIterator[Event]:
        """Runs a turn and yields its events. Closing the iterator early cancels it.

        On a session, a broken connection is resumed at the next frame; nothing is generated twice.

        Args:
            messages: the new ones, or the text of one user message. Without a session: the whole talk.
            session_id: empty asks without a session.
            model: empty takes the session's, or the only one served.
            sampling: how tokens are drawn.
            tactic: how attention reads the KV cache.
            turn_id: names the turn; empty makes one.

        Raises:
            InvalidRequestError: if an option is out of its limits, or the context would be exceeded.
            ConflictError: if a turn is running on the session.
            UnavailableError: if no decode worker is ready.
        """
        if isinstance(messages, str):
            messages = [generation.Message(role="user", content=messages)]
        request = generation.ChatCompletionRequest(
            session_id=session_id,
            messages=messages,
            model=model,
            sampling=sampling,
            tactic=tactic,
            turn_id=turn_id or (uuid.uuid4().hex if session_id else ""),
        )
        return self._turn(request, bool(session_id))

    def resume(self, session_id: str, turn_id: str, after_seq: int = 0) -> AsyncIterator[Event]:
        """Attaches to a turn that is running or has ended lately, from the frame after `after_seq` on.

        Raises:
            NotFoundError: if there is no such turn, or its frames are gone.
        """
        request = generation.ChatCompletionRequest(
            session_id=session_id, turn_id=turn_id, resume_after_seq=after_seq
        )
        return self._turn(request, resumable=True)

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        model: str = "",
        sampling: SamplingOptions | None = None,
        tactic: TacticOptions | None = None,
    ) -> AsyncIterator[Event]:
        """Continues a text, or token ids, without session and chat template; yields the turn's events."""
        request = generation.CompleteRequest(model=model, sampling=sampling, tactic=tactic)
        if isinstance(prompt, str):
            request.text = prompt
        else:
            request.tokens.ids.extend(prompt)

        def open_stream(seen: int, timeout: float | None) -> FrameCall:
            return self._completion.Complete(request, timeout=timeout)

        return events(open_stream, resumable=False, timeouts=self._timeouts, target=self._address)

    def _turn(self, request: generation.ChatCompletionRequest, resumable: bool) -> AsyncIterator[Event]:
        def open_stream(seen: int, timeout: float | None) -> FrameCall:
            if seen:
                request.resume_after_seq = seen
            return self._chat.ChatCompletion(request, timeout=timeout)

        return events(open_stream, resumable, self._timeouts, self._address)

    # Operations

    async def list_models(self) -> list[admin_pb2.Model]:
        """Returns the models served."""
        return list((await self._repeat(self._admin.ListModels, admin_pb2.ListModelsRequest())).models)

    async def list_workers(self) -> list[admin_pb2.Worker]:
        """Returns decode and clustering workers with their counters."""
        return list((await self._repeat(self._admin.ListWorkers, admin_pb2.ListWorkersRequest())).workers)

    async def drain_worker(self, worker_id: str) -> admin_pb2.Worker:
        """Lets a worker finish its turns and gives it no new ones; raises NotFoundError if there is none."""
        return await self._repeat(self._admin.DrainWorker, admin_pb2.DrainWorkerRequest(worker_id=worker_id))

    async def get_stats(self) -> admin_pb2.GetStatsResponse:
        """Returns counts of sessions and turns, and the workers."""
        return await self._repeat(self._admin.GetStats, admin_pb2.GetStatsRequest())

    async def is_serving(self) -> bool:
        """Asks grpc.health.v1 once whether the front end serves."""
        try:
            reply = await self._call(self._health.Check, health_pb2.HealthCheckRequest())
        except TacticError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def _call(self, method: Callable[..., Awaitable[Response]], request: object) -> Response:
        try:
            return await method(request, timeout=self._timeouts.request)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._address) from error

    async def _repeat(self, method: Callable[..., Awaitable[Response]], request: object) -> Response:
        return await repeat(lambda: self._call(method, request), self._timeouts.reconnect)

    async def _create_once(
        self, method: Callable[..., Awaitable[sessions.Session]], request: object, name: str
    ) -> sessions.Session:
        attempts = 0

        async def attempt() -> sessions.Session:
            nonlocal attempts
            attempts += 1
            try:
                return await self._call(method, request)
            except AlreadyExistsError:
                # An earlier attempt did it, and its answer was lost.
                if attempts == 1:
                    raise
                return await self.get_session(name)

        return await repeat(attempt, self._timeouts.reconnect)
