"""What a turn consists of, and a turn as a whole."""

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from tactic.v1 import generation_pb2 as pb
from tactic.v1.types_pb2 import AttentionStats, FinishReason, TokenLogprob, Usage

# Tokens may arrive several in a frame: over fewer than these, a rate means nothing.
FEWEST_FOR_RATE = 8


@dataclass(frozen=True)
class TurnStarted:
    """The first event: a worker has taken the turn."""

    turn_id: str
    prompt_tokens: int
    worker_id: str
    model: str


@dataclass(frozen=True)
class TextDelta:
    """More output: whole characters, and the tokens behind them."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class TurnFinished:
    """The last event: why the turn ended, and what it took."""

    reason: "FinishReason.ValueType"
    stop: str
    usage: Usage
    attention: AttentionStats


Event = TurnStarted | TextDelta | TurnFinished


def from_frame(frame: pb.GenerationFrame) -> Event:
    """Returns the event that a frame carries."""
    if frame.HasField("started"):
        started = frame.started
        return TurnStarted(frame.turn_id, started.prompt_tokens, started.worker_id, started.model)
    if frame.HasField("finished"):
        finished = frame.finished
        return TurnFinished(finished.reason, finished.stop, finished.usage, finished.attention)
    delta = frame.delta
    return TextDelta(delta.text, tuple(delta.token_ids), tuple(delta.logprobs))


@dataclass
class Answer:
    """A turn as a whole, with the times at which its parts arrived.

    Attributes:
        text: the output so far.
        token_ids: its tokens.
        started: the first event, once it has come.
        finished: the last event, once it has come.
        ttft_s: seconds from the request to the first token; None before it.
        decode_s: seconds from the first token to the last one.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    started: TurnStarted | None = None
    finished: TurnFinished | None = None
    ttft_s: float | None = None
    decode_s: float = 0.0
    _asked: float = field(default_factory=time.monotonic, repr=False)
    _first_tokens: int = field(default=0, repr=False)

    @classmethod
    async def collect(
        cls, events: AsyncIterator[Event], on_text: Callable[[str], None] = lambda text: None
    ) -> "Answer":
        """Reads a turn to its end; `on_text` is given each piece of text as it arrives."""
        answer = cls()
        async for event in events:
            answer.add(event)
            if isinstance(event, TextDelta):
                on_text(event.text)
        return answer

    def add(self, event: Event) -> None:
        """Takes in the next event."""
        if isinstance(event, TurnStarted):
            self.started = event
        elif isinstance(event, TurnFinished):
            self.finished = event
        else:
            self.text += event.text
            self.logprobs += event.logprobs
            self._add_tokens(event.token_ids)

    def _add_tokens(self, token_ids: tuple[int, ...]) -> None:
        if not token_ids:
            return
        elapsed = time.monotonic() - self._asked
        if self.ttft_s is None:
            self.ttft_s, self._first_tokens = elapsed, len(token_ids)
        self.decode_s = elapsed - self.ttft_s
        self.token_ids += token_ids

    @property
    def attention(self) -> AttentionStats:
        """What attention did. Raises ValueError while the turn runs."""
        return self._last.attention

    @property
    def usage(self) -> Usage:
        """Token counts. Raises ValueError while the turn runs."""
        return self._last.usage

    @property
    def _last(self) -> TurnFinished:
        if self.finished is None:
            raise ValueError("the turn has not finished")
        return self.finished

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens a second after the first ones arrived; None if too few followed to tell."""
        later = len(self.token_ids) - self._first_tokens
        return later / self.decode_s if later >= FEWEST_FOR_RATE and self.decode_s else None
