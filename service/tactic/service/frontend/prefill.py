"""Computing KV cache and index of a session ahead of its next turn."""

from __future__ import annotations

import asyncio
import logging

import grpc
from redis.exceptions import RedisError

from tactic.service.routing import Dispatcher, NoWorkerError
from tactic.service.sessions import SessionError, SessionStore

log = logging.getLogger(__name__)


class Prefiller:
    """Prefills in the background: at most one request per session. Nothing depends on its success."""

    def __init__(self, sessions: SessionStore, dispatcher: Dispatcher) -> None:
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, session_id: str) -> None:
        """Prefills what the session holds now; an older prefill of it is given up."""
        self.cancel(session_id)
        task = asyncio.create_task(self._prefill(session_id), name=f"prefill {session_id}")
        self._tasks[session_id] = task
        task.add_done_callback(lambda done: self._forget(session_id, done))

    def cancel(self, session_id: str) -> None:
        """Gives up the session's prefill, if one is running."""
        if task := self._tasks.pop(session_id, None):
            task.cancel()

    async def close(self) -> None:
        """Gives up all."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _forget(self, session_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(session_id) is task:
            del self._tasks[session_id]

    async def _prefill(self, session_id: str) -> None:
        try:
            session = await self._sessions.get(session_id)
            prompt = await self._sessions.read_log(session)
            worker = await self._dispatcher.prefill(prompt, session.worker)
            await self._sessions.set_worker(session_id, worker)
        except (NoWorkerError, SessionError, RedisError, grpc.aio.AioRpcError) as error:
            log.info("session %s is not prefilled: %s", session_id, error)
