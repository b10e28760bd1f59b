"""Appending context to a session, chunk by chunk."""

from __future__ import annotations

from array import array

from tactic.service.sessions.client import RedisClient
from tactic.service.sessions.keys import Keys
from tactic.service.sessions.records import FinishedAppend, Lease
from tactic.service.sessions.scripts import Scripts, new_nonce
from tactic.service.sessions.tokens import pack


class AppendStore:
    """Begins appends and records their chunks."""

    def __init__(self, redis: RedisClient, lease_ttl_s: float) -> None:
        self._scripts = Scripts(redis)
        self._ttl_ms = round(lease_ttl_s * 1000)

    async def begin(self, session_id: str, append_id: str) -> Lease | FinishedAppend:
        """Takes the session for an append, also from a front end that had the same append before.

        Nothing but the lease changes until the first chunk. Read the session after this call.

        Returns:
            The lease; or what was appended, if this append is complete already.

        Raises:
            SessionNotFoundError, SessionBusyError, AppendOpenError, OrphanedTurnError: see there.
        """
        keys, nonce = Keys(session_id), new_nonce()
        outcome, *values = await self._scripts.run(
            "begin_append", keys, [keys.appends], [append_id, nonce, self._ttl_ms]
        )
        if outcome == "DONE":
            return FinishedAppend(offset=int(values[0]), tokens=int(values[1]))
        return Lease(session_id, "append", append_id, nonce, fence=values[0])

    async def add(
        self,
        lease: Lease,
        *,
        offset: int,
        size: int,
        token_ids: array[int],
        carry: bytes,
        anchor: str,
        last: bool,
    ) -> None:
        """Makes one chunk durable; the last one also closes the append and gives up the lease.

        Args:
            lease: from `begin`.
            offset: bytes that were durable before.
            size: bytes of this chunk.
            token_ids: what the log gains.
            carry: durable bytes that are not tokens yet.
            anchor: text in the log just before `carry`.
            last: whether the text is complete.

        Raises:
            WrongOffsetError, LeaseLostError, SessionNotFoundError: see there.
        """
        keys = Keys(lease.session_id)
        await self._scripts.run(
            "append_chunk",
            keys,
            [keys.log, keys.appends],
            [
                lease.fence,
                new_nonce(),
                lease.holder_id,
                offset,
                offset + size,
                carry,
                anchor,
                len(token_ids),
                int(last),
                *pack(token_ids),
            ],
            subject=str(offset),
        )
