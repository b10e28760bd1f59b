"""Sessions and their token logs."""

from __future__ import annotations

import json
from array import array
from collections.abc import AsyncIterator, Mapping

from tactic.service.sessions.client import RedisClient
from tactic.service.sessions.errors import SessionExistsError, SessionNotFoundError
from tactic.service.sessions.keys import SESSION_INDEX, Keys
from tactic.service.sessions.records import Session
from tactic.service.sessions.scripts import Scripts, new_nonce
from tactic.service.sessions.tokens import unpack

# Log chunks fetched at once: at most 256 KiB.
READ_CHUNKS = 16
# A fork's copy that its front end did not live to commit goes away by itself.
STAGING_TTL_S = 600


class SessionStore:
    """Creates, reads, lists, forks and deletes sessions."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._scripts = Scripts(redis)

    async def create(self, session_id: str, model: str, labels: Mapping[str, str]) -> Session:
        """Creates an empty session.

        Raises:
            SessionExistsError: the name is taken.
        """
        return await self._create(session_id, new_nonce(), model=model, labels=labels)

    async def get(self, session_id: str) -> Session:
        """Reads a session.

        Raises:
            SessionNotFoundError: there is none of this name.
        """
        meta = await self._redis.hgetall(Keys(session_id).meta)
        if not meta:
            raise SessionNotFoundError(session_id)
        return Session.from_meta(session_id, meta)

    async def page(self, limit: int, after: str = "") -> list[Session]:
        """Lists sessions in order of their ids.

        Args:
            limit: most sessions to return.
            after: id after which to begin; it need not exist any more.
        """
        found: list[Session] = []
        while len(found) < limit:
            wanted = limit - len(found)
            start = f"({after}" if after else "-"
            ids = await self._redis.zrange(SESSION_INDEX, start, "+", bylex=True, offset=0, num=wanted)
            pipeline = self._redis.pipeline(transaction=False)
            for raw in ids:
                pipeline.hgetall(Keys(raw.decode()).meta)
            metas = await pipeline.execute()
            # An entry without a session is one that is being created or deleted just now.
            found += [Session.from_meta(raw.decode(), m) for raw, m in zip(ids, metas, strict=True) if m]
            if len(ids) < wanted:
                break
            after = ids[-1].decode()
        return found

    async def count(self) -> int:
        """Returns how many sessions there are."""
        return int(await self._redis.zcard(SESSION_INDEX))

    async def delete(self, session_id: str) -> None:
        """Deletes a session with its log, turns and frames. What was running on it loses its lease.

        Raises:
            SessionNotFoundError: there is none of this name.
        """
        keys = Keys(session_id)
        more_keys = [keys.log, keys.turns, keys.appends, keys.tombstone]
        await self._scripts.run("delete", keys, more_keys, [new_nonce(), keys.prefix])
        await self._redis.zrem(SESSION_INDEX, session_id)
        # Somebody may have created it again in between.
        if await self._redis.exists(keys.meta):
            await self._redis.zadd(SESSION_INDEX, {session_id: 0})

    async def fork(self, session: Session, new_session_id: str) -> Session:
        """Creates a session with a copy of the log that `session` had when it was read.

        The copy costs 4 bytes a token. (Sharing chunks would tie both sessions to one slot of a cluster.)

        Raises:
            SessionExistsError: the new name is taken.
            SessionNotFoundError: the parent has been deleted.
        """
        nonce = new_nonce()
        staging = Keys(new_session_id).staging(nonce)
        position = 0
        async for chunks in self._log_chunks(session):
            await self._scripts.run(
                "stage", Keys(new_session_id), [staging], [position, STAGING_TTL_S, *chunks]
            )
            position += len(chunks)
        return await self._create(
            new_session_id,
            nonce,
            model=session.model,
            labels=session.labels,
            parent=session.session_id,
            tokens=session.tokens,
            turns=session.turns,
            tail=session.tail,
            worker=session.worker,
        )

    async def read_log(self, session: Session) -> array[int]:
        """Reads the token ids that the log held when `session` was read, as an array of type "I".

        Raises:
            SessionNotFoundError: the session has been deleted.
        """
        tokens = array("I")
        async for chunks in self._log_chunks(session):
            tokens.extend(unpack(chunks))
        return tokens

    async def set_worker(self, session_id: str, worker_id: str) -> None:
        """Remembers which decode worker has the session's prefix.

        Raises:
            SessionNotFoundError: there is none of this name.
        """
        await self._scripts.run("set_worker", Keys(session_id), args=[worker_id])

    async def _create(
        self,
        session_id: str,
        nonce: str,
        *,
        model: str,
        labels: Mapping[str, str],
        parent: str = "",
        tokens: int = 0,
        turns: int = 0,
        tail: str = "",
        worker: str = "",
    ) -> Session:
        keys = Keys(session_id)
        fields: dict[str, str | int] = {
            "model": model,
            "labels": json.dumps(dict(labels)),
            "parent": parent,
            "tokens": tokens,
            "turns": turns,
            "tail": tail,
            "worker": worker,
        }
        pairs = [item for pair in fields.items() for item in pair]
        # Entered after the session, so that none is listed that never was. If it exists already, this mends
        # the index after a front end that died between the two.
        try:
            await self._scripts.run("create", keys, [keys.log, keys.staging(nonce)], [nonce, *pairs])
        except SessionExistsError:
            await self._redis.zadd(SESSION_INDEX, {session_id: 0})
            raise
        await self._redis.zadd(SESSION_INDEX, {session_id: 0})
        return await self.get(session_id)

    async def _log_chunks(self, session: Session) -> AsyncIterator[list[bytes]]:
        """Yields packed chunks, a few at a time, that hold exactly `session.tokens` tokens."""
        left, position = session.tokens, 0
        key = Keys(session.session_id).log
        while left:
            chunks = await self._redis.lrange(key, position, position + READ_CHUNKS - 1)
            position += len(chunks)
            wanted: list[bytes] = []
            # The log may have grown meanwhile; it grows by whole chunks.
            for chunk in chunks:
                if left:
                    wanted.append(chunk)
                    left -= len(chunk) // 4
            if not wanted:
                raise SessionNotFoundError(session.session_id)
            yield wanted
