"""A whole running system for tests: embedded Redis, Ray, real SGLang engines on a tiny model, front end."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from lanes import Lanes
from tiny_model import make_tiny_checkpoint

from tactic.service.client import TacticClient
from tactic.service.config import load_settings
from tactic.service.launch import Deployment, start

# What every test deployment has in common; a test may set other values over it.
STACK_FLAGS: dict[str, Any] = {
    "frontend.port": 0,
    "engine.max_total_tokens": 65536,
    "engine.context_length": 32768,
    "engine.threads": 1,
    "index.segment_size": 2048,
    "index.min_clustered": 1024,
    "index.check_integrity": True,
    "refresh.interval": 32,
}

StartStack = Callable[..., Deployment]


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the settings of whoever runs the tests out of them."""
    for name in [name for name in os.environ if name.startswith("TACTIC_")]:
        del os.environ[name]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Lanes:
    """Where `-n` asks for several processes."""
    return Lanes(config, log)


@dataclass(frozen=True)
class Stack:
    """A deployment, and a client and a bare channel to its first front end."""

    deployment: Deployment
    client: TacticClient
    channel: grpc.aio.Channel

    @property
    def address(self) -> str:
        """host:port of the first front end."""
        return self.deployment.address


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a checkpoint with random weights."""
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def start_stack(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> StartStack:
    """Starts a deployment with settings of its own: `with start_stack({"workers.decode": 2}) as own`."""

    def start_with(flags: dict[str, Any] | None = None) -> Deployment:
        own = {"state_dir": tmp_path_factory.mktemp("state"), "engine.model_path": tiny_checkpoint}
        return start(load_settings(own | STACK_FLAGS | (flags or {})).settings, progress=print)

    return start_with


@pytest.fixture(scope="session")
def deployment(start_stack: StartStack) -> Iterator[Deployment]:
    """The deployment that tests share: one decode worker, one clustering worker."""
    with start_stack() as shared:
        yield shared


@pytest.fixture(scope="session")
async def stack(deployment: Deployment) -> AsyncIterator[Stack]:
    """The shared deployment with a client."""
    async with (
        TacticClient(deployment.address) as client,
        grpc.aio.insecure_channel(deployment.address) as channel,
    ):
        yield Stack(deployment, client, channel)
