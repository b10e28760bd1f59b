"""A real embedded Redis-protocol server, with its append-only file, for all tests of the service."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tactic.service.launch.redis_server import RedisServer
from tactic.service.sessions import RedisClient, connect


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = RedisServer.start(tmp_path_factory.mktemp("redis"))
    yield server.url
    server.stop()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[RedisClient]:
    client = connect(redis_url)
    yield client
    await client.aclose()
