from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from tactic.service.client import TacticClient
from tactic.service.launch import Deployment


@dataclass(frozen=True)
class Other:
    """A deployment beside the shared one, with a client."""

    deployment: Deployment
    client: TacticClient


@pytest.fixture(scope="session")
async def without_refresh(start_stack: Any) -> AsyncIterator[Other]:
    """Two decode workers, no refresh, a context of 4096 and not much more KV cache."""
    flags = {
        "workers.decode": 2,
        "workers.clustering": 0,
        "refresh.enabled": False,
        "engine.context_length": 4096,
        "engine.max_total_tokens": 6144,
    }
    with start_stack(flags) as deployment:
        async with TacticClient(deployment.address) as client:
            yield Other(deployment, client)
