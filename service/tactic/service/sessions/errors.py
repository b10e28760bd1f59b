"""What a session refuses, and why. Nothing has changed when one of these is raised."""


class SessionError(Exception):
    """Base of all refusals."""


class SessionNotFoundError(SessionError):
    """No such session."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"there is no session {session_id!r}")
        self.session_id = session_id


class SessionExistsError(SessionError):
    """The name is taken."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"session {session_id!r} exists already")
        self.session_id = session_id


class SessionBusyError(SessionError):
    """A turn or an append holds the session's lease.

    Attributes:
        kind: "turn" or "append".
        holder_id: its turn or append id.
    """

    def __init__(self, session_id: str, kind: str, holder_id: str) -> None:
        super().__init__(f"session {session_id!r} is busy with {kind} {holder_id!r}")
        self.session_id, self.kind, self.holder_id = session_id, kind, holder_id


class AppendOpenError(SessionError):
    """Another AppendContext has begun and is not finished.

    Attributes:
        append_id: its id.
        next_offset: offset in bytes at which it goes on.
    """

    def __init__(self, session_id: str, append_id: str, next_offset: int) -> None:
        super().__init__(
            f"session {session_id!r} has an unfinished append {append_id!r}: go on with it at offset "
            f"{next_offset}, or finish it by an empty last chunk"
        )
        self.session_id, self.append_id, self.next_offset = session_id, append_id, next_offset


class WrongOffsetError(SessionError):
    """A chunk does not start where the last one ended.

    Attributes:
        expected: offset in bytes at which the next chunk must start.
        given: offset that the chunk named.
    """

    def __init__(self, expected: int, given: int) -> None:
        super().__init__(f"the chunk starts at byte {given}, but {expected} bytes are durable")
        self.expected, self.given = expected, given


class LeaseLostError(SessionError):
    """A newer holder has taken the session over; this one must stop."""

    def __init__(self, session_id: str) -> None:
        super().__init__(f"another front end has taken session {session_id!r} over")
        self.session_id = session_id


class LogMovedError(SessionError):
    """The log grew between reading it and beginning the turn: read again."""


class OrphanedTurnError(SessionError):
    """A turn was left behind by a front end that died; it has to be settled first."""

    def __init__(self, turn_id: str) -> None:
        super().__init__(f"turn {turn_id!r} was left behind")
        self.turn_id = turn_id


class TurnExistsError(SessionError):
    """The session has had a turn of this id."""

    def __init__(self, turn_id: str) -> None:
        super().__init__(f"the session has a turn {turn_id!r} already")
        self.turn_id = turn_id


class TurnNotFoundError(SessionError):
    """The session has no turn of this id, or its frames are gone.

    Attributes:
        expired: True if it has ended so long ago that its frames are gone.
    """

    def __init__(self, turn_id: str, *, expired: bool) -> None:
        why = "its frames are kept no longer" if expired else "the session has no such turn"
        super().__init__(f"turn {turn_id!r} cannot be resumed: {why}")
        self.turn_id, self.expired = turn_id, expired
