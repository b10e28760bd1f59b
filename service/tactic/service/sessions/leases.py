"""Holding on to a lease, and giving it up."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from tactic.service.sessions.client import RedisClient
from tactic.service.sessions.errors import SessionError
from tactic.service.sessions.keys import Keys
from tactic.service.sessions.records import Lease
from tactic.service.sessions.scripts import Scripts, new_nonce

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews leases while work goes on."""

    def __init__(self, redis: RedisClient, lease_ttl_s: float) -> None:
        self._scripts = Scripts(redis)
        self._ttl_s = lease_ttl_s

    @asynccontextmanager
    async def hold(self, lease: Lease) -> AsyncIterator[None]:
        """Renews `lease` in the background inside the block.

        A lease that is lost meanwhile shows at the holder's next change, which is refused.
        """
        renewal = asyncio.create_task(self._renew(lease), name=f"renew {lease.session_id}")
        try:
            yield
        finally:
            renewal.cancel()
            await asyncio.wait([renewal])

    async def release(self, lease: Lease) -> None:
        """Gives the lease up; does nothing if it is lost already."""
        try:
            await self._scripts.run("release", Keys(lease.session_id), args=[lease.fence, new_nonce()])
        except SessionError as error:
            log.debug("nothing to release: %s", error)

    async def _renew(self, lease: Lease) -> None:
        ttl_ms = round(self._ttl_s * 1000)
        while True:
            await asyncio.sleep(self._ttl_s / 3)
            try:
                await self._scripts.run(
                    "renew", Keys(lease.session_id), args=[lease.fence, lease.value, ttl_ms]
                )
            except SessionError as error:
                log.info("lease of session %s is not renewed: %s", lease.session_id, error)
                return
            except RedisError as error:
                # The next round may succeed; if not, the lease lapses, as it should.
                log.warning("cannot renew the lease of session %s: %s", lease.session_id, error)
