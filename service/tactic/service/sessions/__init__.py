"""Durable sessions in Redis: metadata, leases with fences, token logs, turns and their frames.

Every change is one Lua script (`lua/`) that carries the holder's fence and knows its own replay. What a call
has returned from survives the death of any one process, given a server that syncs before it answers
(`appendfsync always`).
"""

from tactic.service.sessions.appends import AppendStore
from tactic.service.sessions.client import RedisClient, connect
from tactic.service.sessions.errors import (
    AppendOpenError,
    LeaseLostError,
    LogMovedError,
    OrphanedTurnError,
    SessionBusyError,
    SessionError,
    SessionExistsError,
    SessionNotFoundError,
    TurnExistsError,
    TurnNotFoundError,
    WrongOffsetError,
)
from tactic.service.sessions.leases import LeaseKeeper
from tactic.service.sessions.records import Append, FinishedAppend, Lease, Session, Turn
from tactic.service.sessions.store import SessionStore
from tactic.service.sessions.turns import Resumption, TurnStore

__all__ = [
    "Append",
    "AppendOpenError",
    "AppendStore",
    "FinishedAppend",
    "Lease",
    "LeaseKeeper",
    "LeaseLostError",
    "LogMovedError",
    "OrphanedTurnError",
    "RedisClient",
    "Resumption",
    "Session",
    "SessionBusyError",
    "SessionError",
    "SessionExistsError",
    "SessionNotFoundError",
    "SessionStore",
    "Turn",
    "TurnExistsError",
    "TurnNotFoundError",
    "TurnStore",
    "WrongOffsetError",
    "connect",
]
