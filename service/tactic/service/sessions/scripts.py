"""The Lua scripts, and what their outcomes mean."""

import uuid
from collections.abc import Sequence
from functools import cache
from importlib import resources

from tactic.service.sessions.client import RedisClient
from tactic.service.sessions.errors import (
    AppendOpenError,
    LeaseLostError,
    LogMovedError,
    OrphanedTurnError,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    TurnExistsError,
    TurnNotFoundError,
    WrongOffsetError,
)
from tactic.service.sessions.keys import Keys

Argument = str | bytes | int


def new_nonce() -> str:
    """Names one change, so that its replay is known as such."""
    return uuid.uuid4().hex


@cache
def _source(name: str) -> str:
    folder = resources.files(__package__) / "lua"
    return (folder / "prelude.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")


class Scripts:
    """Runs scripts on a session's keys."""

    def __init__(self, redis: RedisClient) -> None:
        self.redis = redis

    async def run(
        self,
        name: str,
        keys: Keys,
        more_keys: Sequence[str] = (),
        args: Sequence[Argument] = (),
        subject: str = "",
    ) -> list[str]:
        """Runs `lua/<name>.lua` on the session's meta, its lease and `more_keys`.

        Args:
            name: the script.
            keys: the session.
            more_keys: KEYS[3] and on.
            args: ARGV.
            subject: turn id, or offset of a chunk: what a refusal is about.

        Returns:
            The outcome and its values, if it is not a refusal.

        Raises:
            SessionError: the refusal.
        """
        script = self.redis.register_script(_source(name))
        reply = await script(keys=[keys.meta, keys.lease, *more_keys], args=list(args))
        outcome, *values = [item.decode() for item in reply]
        match outcome:
            case "MISSING":
                raise SessionNotFoundError(keys.session_id)
            case "EXISTS":
                raise SessionExistsError(keys.session_id)
            case "FENCED":
                raise LeaseLostError(keys.session_id)
            case "BUSY":
                raise SessionBusyError(keys.session_id, values[0], values[1])
            case "APPEND_OPEN":
                raise AppendOpenError(keys.session_id, values[0], int(values[1]))
            case "OFFSET":
                raise WrongOffsetError(int(values[0]), int(subject))
            case "ORPHAN":
                raise OrphanedTurnError(values[0])
            case "MOVED":
                raise LogMovedError(f"the log of session {keys.session_id!r} has grown meanwhile")
            case "TURN_EXISTS":
                raise TurnExistsError(subject)
            case "TURN_MISSING" | "TURN_EXPIRED":
                raise TurnNotFoundError(subject, expired=outcome == "TURN_EXPIRED")
            case _:
                return [outcome, *values]
