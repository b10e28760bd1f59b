"""What bytes each token stands for."""

import json
import re
from typing import Any

from tokenizers import Tokenizer

SPACE = "\u2581"  # SentencePiece's mark for a space
BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class UnsupportedTokenizerError(ValueError):
    """The checkpoint's tokenizer cannot be served; the message says why."""


class Vocabulary:
    """Maps token ids to bytes, so that text can be put together byte by byte.

    Knows byte-level BPE (GPT-2, Llama 3, Qwen …) and SentencePiece, with or without byte fallback (Llama 2,
    Mistral, Gemma …).

    Raises:
        UnsupportedTokenizerError: if the tokenizer decodes in another way.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = json.loads(tokenizer.to_str())["decoder"] or {"type": "none"}
        steps: list[dict[str, Any]] = decoder.get("decoders", [decoder])
        kinds = {step["type"] for step in steps}
        if "ByteLevel" in kinds:
            self._bytes = _byte_level(tokenizer)
        elif "Metaspace" in kinds or any(step.get("pattern") == {"String": SPACE} for step in steps):
            self._bytes = _sentencepiece(tokenizer, byte_fallback="ByteFallback" in kinds)
        else:
            raise UnsupportedTokenizerError(
                f"tokenizer.json decodes by {sorted(kinds)}: neither byte-level nor SentencePiece"
            )
        self.strips_first_space = any(
            (step["type"] == "Strip" and step["start"])
            or (step["type"] == "Metaspace" and step.get("prepend_scheme") != "never")
            for step in steps
        )
        self.special_ids = frozenset(
            token_id for token_id, added in tokenizer.get_added_tokens_decoder().items() if added.special
        )
        for token_id, added in tokenizer.get_added_tokens_decoder().items():
            self._bytes[token_id] = b"" if added.special else added.content.encode()

    def token_bytes(self, token_id: int) -> bytes:
        """Returns the UTF-8 bytes of a token; none for special tokens and for ids beyond the vocabulary."""
        return self._bytes.get(token_id, b"")


def _byte_level(tokenizer: Tokenizer) -> dict[int, bytes]:
    table = _byte_characters()
    return {
        token_id: bytes(table[char] for char in token)
        for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items()
        if all(char in table for char in token)
    }


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + rank): byte for rank, byte in enumerate(others)}


def _sentencepiece(tokenizer: Tokenizer, *, byte_fallback: bool) -> dict[int, bytes]:
    pieces: dict[int, bytes] = {}
    for token, token_id in tokenizer.get_vocab(with_added_tokens=False).items():
        byte = BYTE_TOKEN.fullmatch(token) if byte_fallback else None
        pieces[token_id] = bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()
    return pieces
