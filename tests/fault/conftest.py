import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tactic.service.client import TacticClient


@pytest.fixture(scope="session")
async def client(start_stack: Any) -> AsyncIterator[TacticClient]:
    """Of a deployment with two decode workers, whose clustering worker may take 5 s for a job.

    It ignores SIGQUIT, as what a shell starts in the background does, so that workers have to find out by
    themselves that a process of their engine has ended.

    A worker's index holds 16 units of 512 positions, a quarter of its KV cache.
    """
    flags = {
        "workers.decode": 2,
        "refresh.timeout_s": 5,
        "engine.max_total_tokens": 32768,
        "index.memory_share": 0.0021,
    }
    before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    with start_stack(flags) as own:
        signal.signal(signal.SIGQUIT, before)
        async with TacticClient(own.address) as client:
            yield client
