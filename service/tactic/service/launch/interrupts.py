"""Ctrl-C and SIGTERM at a moment that suits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

DEFERRED = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Delivers SIGINT and SIGTERM after the block: a child that is started must be noted before we may die.

    Blocking them in the signal mask would not do, for the child would inherit it. Outside the main thread,
    which signals do not reach, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    previous = {
        number: signal.signal(number, lambda arrived, _: pending.append(arrived)) for number in DEFERRED
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for late in pending:
            signal.raise_signal(late)
