"""Letting running turns finish when the front end stops."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tactic.service.frontend.errors import RETRY_S, Code, ServiceError


class Drain:
    """Knows the turns that run here."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[object]] = set()
        self._ended: set[asyncio.Task[object]] = set()
        self._closed = False

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Counts the present task as a turn inside the block.

        Raises:
            ServiceError: UNAVAILABLE, when the front end stops before or while the turn runs.
        """
        if self._closed:
            raise _stopping()
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            raise _stopping() from None
        finally:
            self._running.discard(task)
            self._ended.discard(task)

    async def close(self, grace_s: float) -> None:
        """Takes no more turns, waits for the running ones, and ends those that need longer than `grace_s`."""
        self._closed = True
        if self._running:
            await asyncio.wait(self._running, timeout=grace_s)
        self._ended = set(self._running)
        for task in self._ended:
            task.cancel()
        if self._ended:
            await asyncio.wait(set(self._ended))


def _stopping() -> ServiceError:
    return ServiceError(
        Code.UNAVAILABLE,
        "SHUTTING_DOWN",
        "this front end is stopping: resume the turn on another one",
        retry_s=RETRY_S,
    )
