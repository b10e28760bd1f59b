"""Work that goes on to its end, whether or not its caller waits for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class Kept:
    """Tasks that a cancellation of their caller leaves alone."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Starts what has to be done to its end."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def take(
        self, take: Coroutine[Any, Any, Result], undo: Callable[[Result], Awaitable[None]]
    ) -> Result:
        """Waits for `take`. If the caller is cancelled meanwhile, it does not keep what it may have taken.

        Args:
            take: takes a lease; the store may have given it out before the answer is here.
            undo: gives back what `take` returns.
        """
        taking = asyncio.create_task(take)
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # Its failure must not hide the cancellation.
            await asyncio.wait([self.start(_undone(taking, undo))])
            raise

    async def close(self) -> None:
        """Waits for what is still being done."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        # Whoever waits for it hears of it too; after a cancellation nobody does.
        if not task.cancelled() and (error := task.exception()):
            log.info("not done: %s", error)


async def _undone(taking: asyncio.Task[Result], undo: Callable[[Result], Awaitable[None]]) -> None:
    await undo(await taking)
