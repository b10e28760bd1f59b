"""Repeating calls that are safe to repeat."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tactic.service.client._errors import TacticError, UnavailableError

FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 3.0

Result = TypeVar("Result")


class Patience:
    """How long to go on after failures. A success starts it anew."""

    def __init__(self, budget_s: float) -> None:
        self._budget_s = budget_s
        self.renew()

    def renew(self) -> None:
        """Forgets earlier failures."""
        self._failing_since: float | None = None
        self._delay_s = FIRST_DELAY_S

    async def after(self, error: TacticError) -> None:
        """Sleeps before the next attempt, or raises `error` if repeating is of no use or time is up."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        delay_s = self._delay_s if error.retry_after_s is None else error.retry_after_s
        helps = isinstance(error, UnavailableError) or error.retry_after_s is not None
        if not helps or now + delay_s - self._failing_since > self._budget_s:
            raise error
        self._delay_s = min(2 * self._delay_s, LONGEST_DELAY_S)
        await asyncio.sleep(delay_s)


async def repeat(call: Callable[[], Awaitable[Result]], budget_s: float) -> Result:
    """Makes a call that has no effect, or none when repeated, until it succeeds or patience ends."""
    patience = Patience(budget_s)
    while True:
        try:
            return await call()
        except TacticError as error:
            await patience.after(error)
