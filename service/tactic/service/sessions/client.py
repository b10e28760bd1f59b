"""The few Redis commands that the store uses, with the types that they have when replies are bytes."""

# ruff: noqa: D102 (the methods are redis-py's and documented there)

from collections.abc import Mapping
from typing import Any, Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, TimeoutError

# Covers the restart of an embedded server; what is retried is idempotent.
RETRIES = 6
# Each client that follows a turn of another front end holds one.
CONNECTIONS = 2000


class RedisClient(Protocol):
    """redis-py's own annotations leave every reply a union of all that it might be under some option."""

    async def ping(self) -> bool: ...
    async def aclose(self) -> None: ...
    async def exists(self, *names: str) -> int: ...
    async def hgetall(self, name: str) -> dict[bytes, bytes]: ...
    async def hdel(self, name: str, *fields: str) -> int: ...
    async def lrange(self, name: str, start: int, end: int) -> list[bytes]: ...
    async def zadd(self, name: str, mapping: Mapping[str, float]) -> int: ...
    async def zrem(self, name: str, *values: str) -> int: ...
    async def zcard(self, name: str) -> int: ...
    async def zrange(
        self, name: str, start: str, end: str, *, bylex: bool, offset: int, num: int
    ) -> list[bytes]: ...
    async def xread(
        self, streams: Mapping[str, str], *, count: int, block: int | None
    ) -> list[tuple[bytes, list[tuple[bytes, dict[bytes, bytes]]]]]: ...
    def pipeline(self, *, transaction: bool) -> Any: ...
    def register_script(self, script: str) -> Any: ...


def connect(url: str) -> RedisClient:
    """Makes a client for redis://, rediss:// or unix:// URLs; it connects at its first command."""
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), RETRIES, (ConnectionError, TimeoutError))
    return cast(RedisClient, Redis.from_url(url, retry=retry, max_connections=CONNECTIONS))
