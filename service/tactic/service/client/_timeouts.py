"""How long a client waits for what."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Timeouts:
    """Seconds; None waits for ever.

    Attributes:
        request: for one call that is not a stream, and for one acknowledgement of appended text.
        turn: for a whole turn, from request to last frame. The server sees it as the deadline.
        silence: between two frames of a turn; the first one comes after the prefill.
        reconnect: how long calls that are safe to repeat are repeated while no front end answers.
    """

    request: float | None = 60.0
    turn: float | None = None
    silence: float | None = None
    reconnect: float = 30.0
