"""Token ids as Redis strings: unsigned 32-bit little-endian, at most 4096 in one."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence

CHUNK_TOKENS = 4096


def pack(token_ids: Sequence[int] | array[int]) -> list[bytes]:
    """Packs token ids, at most CHUNK_TOKENS in each string; no tokens give no strings."""
    values = token_ids if isinstance(token_ids, array) else array("I", token_ids)
    return [_little(values[i : i + CHUNK_TOKENS]).tobytes() for i in range(0, len(values), CHUNK_TOKENS)]


def unpack(chunks: Iterable[bytes]) -> array[int]:
    """Joins packed strings into one array of type "I"."""
    return _little(array("I", b"".join(chunks)))


def _little(values: array[int]) -> array[int]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
