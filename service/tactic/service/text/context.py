"""Turning a streamed text into tokens that hardly depend on where the stream was cut."""

from __future__ import annotations

import re
from array import array
from dataclasses import dataclass

from tactic.service.text.tokenizer import TextTokenizer

# Every common tokenizer starts a new token at a single space between two other characters.
BORDER = re.compile(r"(?<=\S) (?=\S)")
# Where to look for such a border, and how long text without one may become, in characters.
WINDOW = 4096
LONGEST_CARRY = 8192
ANCHOR = 64


class InvalidUtf8Error(ValueError):
    """The data are not UTF-8.

    Attributes:
        position: index in the data of the first bad byte; negative if it was carried from earlier data.
    """

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"not UTF-8 at byte {position} of the chunk: {reason}")
        self.position = position


@dataclass(frozen=True)
class EncodedChunk:
    """What one chunk adds."""

    token_ids: array[int]
    carry: bytes
    """Bytes that wait for the next chunk."""
    anchor: str
    """Text just before `carry`."""
    carried_tokens: int
    """Tokens that `carry` would be if the text ended here."""


def encode_chunk(
    tokenizer: TextTokenizer, anchor: str, carry: bytes, data: bytes, *, last: bool
) -> EncodedChunk:
    """Encodes the next chunk of a text.

    Args:
        tokenizer: the model's.
        anchor: text before `carry`, from the chunk before or the template.
        carry: bytes left over by the chunk before.
        data: this chunk.
        last: whether the text ends here; then nothing is carried.

    Raises:
        InvalidUtf8Error: see there.
    """
    text, rest = _decode(carry, data, last=last)
    cut = len(text) if last else _cut(text)
    ready, waiting = text[:cut], text[cut:]
    token_ids = tokenizer.encode_after(anchor, ready) if ready else array("I")
    anchor = _anchor(anchor + ready)
    carried = len(tokenizer.encode_after(anchor, waiting)) if waiting else 0
    return EncodedChunk(token_ids, waiting.encode() + rest, anchor, carried)


def _decode(carry: bytes, data: bytes, *, last: bool) -> tuple[str, bytes]:
    """Returns the text, and the bytes of a character that is not complete."""
    raw = carry + data
    try:
        return raw.decode(), b""
    except UnicodeDecodeError as error:
        if last or error.reason != "unexpected end of data":
            raise InvalidUtf8Error(error.start - len(carry), error.reason) from None
        return raw[: error.start].decode(), raw[error.start :]


def _cut(text: str) -> int:
    start = max(0, len(text) - WINDOW)
    borders = [match.start() for match in BORDER.finditer(text, start)]
    if borders:
        return borders[-1]
    if len(text) < LONGEST_CARRY:
        return 0
    newline = text.rfind("\n", start)
    return newline + 1 or len(text)


def _anchor(text: str) -> str:
    end = text[-ANCHOR:]
    border = end.rfind(" ")
    return end[border:] if border > 0 else end
