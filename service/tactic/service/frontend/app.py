"""The front end, put together."""

from __future__ import annotations

import asyncio

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import OVERALL_HEALTH
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]  # not in its stubs
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_reflection.v1alpha import reflection

from tactic.service.config import ConfigError, Settings
from tactic.service.frontend.admin import AdminService
from tactic.service.frontend.appends import Appends
from tactic.service.frontend.chat import ChatService
from tactic.service.frontend.completion import CompletionService
from tactic.service.frontend.drain import Drain
from tactic.service.frontend.guard import HARD_LIMIT_FACTOR, Guard
from tactic.service.frontend.model import ServedModel
from tactic.service.frontend.prefill import Prefiller
from tactic.service.frontend.sessions import SessionService
from tactic.service.frontend.turns import Turns
from tactic.service.routing import Dispatcher, LoadBook, Router, Supervisor, WorkerTable
from tactic.service.sessions import AppendStore, LeaseKeeper, SessionStore, TurnStore, connect
from tactic.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
)

KEEPALIVE_MS = 20_000
# Shortest time between two signs of life that a client may ask for.
LEAST_PING_MS = 10_000


class FrontEnd:
    """A gRPC server for the services of `tactic.v1`. It keeps nothing to itself, so any number may run."""

    def __init__(self, settings: Settings) -> None:
        """Connects nothing yet.

        Raises:
            ConfigError: a setting is missing.
            UnsupportedTokenizerError: the checkpoint's tokenizer or chat template cannot be served.
        """
        if not settings.redis.url:
            raise ConfigError(
                "redis.url is not set: give the URL of a Redis or Valkey server (TACTIC_REDIS_URL)"
            )
        if not settings.workers.supervisor_address:
            raise ConfigError("workers.supervisor_address is not set: give host:port of the supervisor")
        if settings.engine.model_path is None:
            raise ConfigError("engine.model_path is not set: its tokenizer is needed (TACTIC_MODEL)")
        own = settings.frontend
        self._settings = own
        self._redis = connect(settings.redis.url)
        self._table = WorkerTable()
        self._model = ServedModel(settings.engine.model_path.expanduser(), self._table)
        self._supervisor = Supervisor(settings.workers.supervisor_address, self._table)
        self._load = LoadBook(self._redis)
        self._router = Router(self._table, self._load, own.max_message_bytes)
        dispatcher = Dispatcher(self._router, own.worker_wait_s)
        sessions = SessionStore(self._redis)
        leases = LeaseKeeper(self._redis, own.lease_ttl_s)
        turn_store = TurnStore(self._redis, own.lease_ttl_s, own.replay_ttl_s)
        self._turns = Turns(sessions, turn_store, leases, dispatcher, self._model, own.default_max_tokens)
        append_store = AppendStore(self._redis, own.lease_ttl_s)
        appends = Appends(sessions, append_store, leases, self._turns, self._model)
        self._prefiller = Prefiller(sessions, dispatcher)
        self._drain = Drain()
        self._health = health_aio.HealthServicer()
        self._background: list[asyncio.Task[None]] = []
        hard_limit = min(HARD_LIMIT_FACTOR * own.max_message_bytes, 2**31 - 1)
        self._server = grpc.aio.server(
            interceptors=[Guard(own.max_message_bytes)],
            options=[
                ("grpc.max_receive_message_length", hard_limit),
                ("grpc.max_send_message_length", hard_limit),
                # A client whose host is gone must not hold a worker for ever.
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
                ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", LEAST_PING_MS),
                # A second server on the same port is a mistake, not a way to share load.
                ("grpc.so_reuseport", 0),
            ],
        )
        session_service = SessionService(sessions, appends, self._turns, self._prefiller, self._model)
        chat = ChatService(self._turns, dispatcher, self._model, self._drain)
        completion = CompletionService(self._turns, dispatcher, self._model, self._drain)
        admin = AdminService(self._table, self._supervisor, self._load, sessions, self._model)
        session_pb2_grpc.add_SessionServiceServicer_to_server(session_service, self._server)
        generation_pb2_grpc.add_ChatServiceServicer_to_server(chat, self._server)
        generation_pb2_grpc.add_CompletionServiceServicer_to_server(completion, self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = [
            session_pb2.DESCRIPTOR.services_by_name["SessionService"].full_name,
            generation_pb2.DESCRIPTOR.services_by_name["ChatService"].full_name,
            generation_pb2.DESCRIPTOR.services_by_name["CompletionService"].full_name,
            admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name,
        ]
        health_name = "grpc.health.v1.Health"
        reflection.enable_server_reflection(
            [*self._services, health_name, reflection.SERVICE_NAME], self._server
        )

    async def start(self) -> str:
        """Connects to Redis and the supervisor, and listens.

        Returns:
            host:port.

        Raises:
            RedisError: the store does not answer.
            OSError: the port is taken.
        """
        await self._redis.ping()
        own = self._settings
        try:
            port = self._server.add_insecure_port(f"{own.host}:{own.port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {own.host}:{own.port}: {error}") from None
        self._background = [
            asyncio.create_task(self._report_health(), name="report health"),
            asyncio.create_task(self._supervisor.watch(), name="watch the supervisor"),
            asyncio.create_task(self._load.keep(), name="keep the load"),
        ]
        await self._server.start()
        return f"{own.host}:{port}"

    async def failure(self) -> None:
        """Waits for ever; raises what has ended a background task, without which nobody is served."""
        await asyncio.gather(*self._background)

    async def stop(self) -> None:
        """Lets running turns finish, up to the grace; leaves longer ones to be resumed elsewhere."""
        await self._health.enter_graceful_shutdown()
        await self._drain.close(self._settings.shutdown_grace_s)
        await self._server.stop(grace=1.0)
        await self._prefiller.close()
        await self._turns.close()
        for task in self._background:
            task.cancel()
        await asyncio.wait(self._background)
        await self._router.close()
        await self._supervisor.close()
        await self._redis.aclose()

    async def _report_health(self) -> None:
        """Serving means that a request would find a worker. For ever."""
        while True:
            serving = self._table.model is not None and bool(self._table.ready())
            status = HealthCheckResponse.SERVING if serving else HealthCheckResponse.NOT_SERVING
            for service in (OVERALL_HEALTH, *self._services):
                await self._health.set(service, status)
            await self._table.wait_update()
