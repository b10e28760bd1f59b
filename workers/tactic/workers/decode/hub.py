"""The decode worker's end of the line to its scheduler processes."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from pathlib import Path

import zmq
import zmq.asyncio

from tactic.workers.refresh import messages
from tactic.workers.refresh.messages import Frames, Gauges, Hello, RefreshJob, RefreshReply, RequestReport

logger = logging.getLogger(__name__)

KEPT_REPORTS = 1024


class SchedulerHub:
    """Hears what the ranks say and remembers the latest; passes refresh jobs on.

    Args:
        ranks: scheduler processes that will connect.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.hellos: dict[int, Hello] = {}
        self.gauges: dict[int, Gauges] = {}
        self._directory = tempfile.TemporaryDirectory(prefix="tactic-link-")
        self.address = f"ipc://{Path(self._directory.name, 'hub')}"
        self._context = zmq.asyncio.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.bind(self.address)
        self._reports: OrderedDict[str, list[RequestReport]] = OrderedDict()
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def start(self, on_job: Callable[[RefreshJob, list[bytes]], Awaitable[None]]) -> None:
        """Begins to listen, on the running event loop; jobs go to `on_job`."""
        self._task = asyncio.create_task(self._listen(on_job))

    async def stop(self) -> None:
        """Closes the line."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._socket.close()
        self._context.term()
        self._directory.cleanup()

    async def reply(self, rank: int, reply: RefreshReply, frames: Frames) -> None:
        """Sends the answer to a refresh job."""
        await self._socket.send_multipart([f"rank-{rank}".encode(), messages.encode(reply), *frames])

    async def wait_hello(self, timeout_s: float) -> list[Hello]:
        """The Hello of every rank. Raises TimeoutError if one does not come."""
        async with asyncio.timeout(timeout_s), self._changed:
            await self._changed.wait_for(lambda: len(self.hellos) == self.ranks)
        return list(self.hellos.values())

    async def take_reports(self, request_id: str, stays: int, timeout_s: float = 2.0) -> list[RequestReport]:
        """What each rank reported of a request that held a slot `stays` times; less after the timeout."""
        try:
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(
                    lambda: len(self._reports.get(request_id, ())) >= stays * self.ranks
                )
        except TimeoutError:
            logger.warning("no attention report for request %s", request_id)
        return self._reports.pop(request_id, [])

    async def _listen(self, on_job: Callable[[RefreshJob, list[bytes]], Awaitable[None]]) -> None:
        while True:
            _, header, *frames = await self._socket.recv_multipart()
            message = messages.decode_to_worker(header)
            match message:
                case RefreshJob():
                    await on_job(message, frames)
                    continue
                case Hello():
                    self.hellos[message.rank] = message
                    if len(self.hellos) == self.ranks:
                        # Nobody else will connect, and a killed process leaves nothing behind.
                        self._directory.cleanup()
                case Gauges():
                    self.gauges[message.rank] = message
                case RequestReport():
                    self._reports.setdefault(message.request_id, []).append(message)
                    if len(self._reports) > KEPT_REPORTS:
                        self._reports.popitem(last=False)
            async with self._changed:
                self._changed.notify_all()
