"""From generated tokens to the text and tokens that a client may see."""

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tactic.service.text.vocabulary import Vocabulary
from tactic.v1 import types_pb2


@dataclass
class Piece:
    """Text, and exactly the tokens that it came from."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[types_pb2.TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class _Token:
    token_id: int
    logprob: types_pb2.TokenLogprob | None
    start: int
    end: int
    """Its characters in the whole output; none if it only begins one."""


class OutputText:
    """Detokenises step by step, holding back what may become a stop string.

    Characters appear when their last byte has come; bytes that are no UTF-8 appear as U+FFFD, and a character
    that stays incomplete does not appear. Tokens are released together with their text: what was
    shown is always exactly the text of the tokens that were released.

    Attributes:
        stopped: the stop string that was found, or "". Nothing may be pushed after that.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str] = ()) -> None:
        self.stopped = ""
        self._vocabulary = vocabulary
        self._stops = stops
        self._longest = max(map(len, stops), default=0)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting: deque[_Token] = deque()
        self._text = ""
        """Characters from `_released` on."""
        self._released = 0
        self._visible_end = 0
        self._at_start = vocabulary.strips_first_space

    def restore(self, token_ids: Iterable[int]) -> None:
        """Goes on after tokens that were released by another instance."""
        for token_id in token_ids:
            self._released += len(self._decode(token_id))
        self._visible_end = self._released

    def push(self, token_id: int, logprob: types_pb2.TokenLogprob | None = None) -> None:
        """Takes the next token."""
        start = self._released + len(self._text)
        searched = max(0, len(self._text) - self._longest + 1)
        self._text += self._decode(token_id)
        self._waiting.append(_Token(token_id, logprob, start, self._released + len(self._text)))
        found = [(at, stop) for stop in self._stops if (at := self._text.find(stop, searched)) >= 0]
        if found:
            at, self.stopped = min(found)
            self._text = self._text[:at]
        self._visible_end = self._released + len(self._text)

    def take(self) -> Piece:
        """Returns what may be shown now."""
        if self.stopped:
            return self.flush()
        return self._release(self._visible_end - self._held_back(), partly=False)

    def flush(self) -> Piece:
        """Returns all that is left, at the end of the output."""
        return self._release(self._visible_end, partly=True)

    def _decode(self, token_id: int) -> str:
        text = self._decoder.decode(self._vocabulary.token_bytes(token_id))
        if self._at_start and text:
            text, self._at_start = text.removeprefix(" "), False
        return text

    def _held_back(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        for size in range(min(self._longest - 1, len(self._text)), 0, -1):
            if any(stop.startswith(self._text[-size:]) for stop in self._stops):
                return size
        return 0

    def _release(self, limit: int, *, partly: bool) -> Piece:
        piece, end = Piece(), self._released
        while self._waiting:
            token = self._waiting[0]
            if token.end > limit and not (partly and token.start < limit):
                break
            self._waiting.popleft()
            piece.token_ids.append(token.token_id)
            if token.logprob is not None:
                piece.logprobs.append(token.logprob)
            end = min(token.end, limit)
        piece.text, self._text = self._text[: end - self._released], self._text[end - self._released :]
        self._released = end
        return piece
