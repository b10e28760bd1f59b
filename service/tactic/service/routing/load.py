"""How much each worker has to do, as all front ends know it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Literal

from redis.exceptions import RedisError

from tactic.service.sessions import RedisClient

log = logging.getLogger(__name__)

LOAD_KEY = "tactic:workers:load"
# What a dead front end had charged counts no longer after this.
TTL_S = 15.0

Kind = Literal["turn", "prefill"]


@cache
def _source(name: str) -> str:
    return (resources.files(__package__) / "lua" / f"{name}.lua").read_text("utf-8")


class LoadBook:
    """Prompt tokens in flight on each worker, shared through Redis and counted before dispatch."""

    def __init__(self, redis: RedisClient, ttl_s: float = TTL_S) -> None:
        self._redis = redis
        self._ttl_s = ttl_s
        self._ttl_ms = round(ttl_s * 1000)
        self._mine: set[str] = set()

    async def charge(
        self, request_id: str, tokens: int, kind: Kind, candidates: Sequence[str], preferred: str
    ) -> str:
        """Picks a worker and counts the request as its load, in one step.

        Args:
            request_id: names the charge; charging it again answers the same worker.
            tokens: length of the prompt.
            kind: what the request is.
            candidates: worker ids, at least one; of equally loaded ones the first is taken.
            preferred: is taken whatever its load, if it is a candidate.
        """
        arguments = [request_id, tokens, kind, self._ttl_ms, preferred, *candidates]
        self._mine.add(request_id)
        script = self._redis.register_script(_source("charge"))
        worker: bytes = await script(keys=[LOAD_KEY], args=arguments)
        return worker.decode()

    async def discharge(self, request_id: str) -> None:
        """Takes a charge back. If Redis cannot be reached, it runs out by itself."""
        try:
            await self._redis.hdel(LOAD_KEY, request_id)
        except RedisError as error:
            log.warning("load of request %s stays until it runs out: %s", request_id, error)
        finally:
            self._mine.discard(request_id)

    async def count(self, kind: Kind) -> int:
        """Returns how many requests of this kind all front ends have running."""
        return int(await self._redis.register_script(_source("count"))(keys=[LOAD_KEY], args=[kind]))

    async def keep(self) -> None:
        """Renews this front end's charges, for ever."""
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            if not self._mine:
                continue
            try:
                script = self._redis.register_script(_source("renew"))
                await script(keys=[LOAD_KEY], args=[self._ttl_ms, *self._mine])
            except RedisError as error:
                log.warning("cannot renew this front end's load: %s", error)
