"""What the store hands out."""

from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

from tactic.service.sessions.tokens import unpack


@dataclass(frozen=True)
class Append:
    """An append that has begun and not finished."""

    append_id: str
    next_offset: int
    """Bytes that are durable."""
    tokens: int
    """Tokens that it has added to the log."""
    carry: bytes
    """Durable bytes that are not tokens yet: a partial word, perhaps a partial character."""
    anchor: str
    """Text just before `carry`, which is in the log."""


@dataclass(frozen=True)
class Session:
    """A session as it stood at one moment."""

    session_id: str
    model: str
    tokens: int
    """Tokens in the log."""
    turns: int
    """Turns that are in the log."""
    created_ms: int
    updated_ms: int
    labels: dict[str, str]
    parent: str
    tail: str
    """The message at the end of the log, still open: "" (empty log), "context" or "assistant"."""
    active_turn: str
    append: Append | None
    worker: str
    """Decode worker that served it last, or ""."""

    @classmethod
    def from_meta(cls, session_id: str, meta: Mapping[bytes, bytes]) -> Session:
        """Reads the meta hash."""
        text = {key.decode(): value.decode() for key, value in meta.items() if key != b"carry"}
        append = None
        if text.get("append_id"):
            append = Append(
                append_id=text["append_id"],
                next_offset=int(text["append_offset"]),
                tokens=int(text["append_tokens"]),
                carry=meta[b"carry"],
                anchor=text["anchor"],
            )
        return cls(
            session_id=session_id,
            model=text["model"],
            tokens=int(text["tokens"]),
            turns=int(text["turns"]),
            created_ms=int(text["created"]),
            updated_ms=int(text["updated"]),
            labels=json.loads(text["labels"]),
            parent=text["parent"],
            tail=text["tail"],
            active_turn=text.get("active", ""),
            append=append,
            worker=text.get("worker", ""),
        )


@dataclass(frozen=True)
class Lease:
    """The right to change a session, until a newer fence is given out."""

    session_id: str
    kind: str
    """"turn" or "append"."""
    holder_id: str
    """The turn or append id."""
    nonce: str
    fence: str

    @property
    def value(self) -> str:
        """What the lease key holds."""
        return f"{self.fence} {self.kind} {self.holder_id} {self.nonce}"


@dataclass(frozen=True)
class FinishedAppend:
    """An append that is complete."""

    offset: int
    tokens: int


@dataclass(frozen=True)
class Turn:
    """A turn as recorded, without its frames."""

    turn_id: str
    state: str
    """"running", "finished" or "interrupted"."""
    request: bytes
    digest: str
    prompt: array[int] = field(repr=False)
    """What the turn adds to the log before its output."""
    start: int
    """Tokens in the log when it began."""
    end: int
    """Tokens in the log when it last ended; equal to `start` if nothing of it is in the log."""
    logged: int
    """Output tokens that are in the log."""

    @classmethod
    def from_hash(cls, turn_id: str, fields: Mapping[bytes, bytes]) -> Turn:
        """Reads the turn hash."""
        return cls(
            turn_id=turn_id,
            state=fields[b"state"].decode(),
            request=fields[b"request"],
            digest=fields[b"digest"].decode(),
            prompt=unpack([fields[b"prompt"]]),
            start=int(fields[b"start"]),
            end=int(fields[b"end"]),
            logged=int(fields[b"logged"]),
        )
