"""Processes of this host, told apart from later ones of the same id, and whether they are at an end."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import weakref
from collections.abc import Callable


class Process:
    """Holds on to a process, be it dead or alive.

    Args:
        pid: its id.

    Raises:
        ProcessLookupError: there is none.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._fd)

    def kill(self) -> None:
        """Ends it by SIGKILL, if it has not ended yet."""
        try:
            signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def ended(self, timeout_s: float | None) -> bool:
        """Waits until it has ended; False if it has not within `timeout_s`, if that is given."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        try:
            async with asyncio.timeout(timeout_s):
                await ended.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(self._fd)
        return True


def when_ended(pid: int, call: Callable[[], None]) -> None:
    """Calls `call`, from a thread, once a process has ended. Raises ProcessLookupError if there is none."""
    fd = os.pidfd_open(pid)

    def wait() -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.poll()
        os.close(fd)
        call()

    threading.Thread(target=wait, name=f"watch-{pid}", daemon=True).start()
