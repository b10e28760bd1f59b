"""A checkpoint's tokenizer."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import tokenizers

from tactic.service.text.vocabulary import UnsupportedTokenizerError, Vocabulary

SAMPLE = "Hello, wörld! 你好 🙂 x = 1234;\n\tend"


class TextTokenizer:
    """Text to token ids, and the bytes of token ids.

    Attributes:
        vocabulary: bytes of each token.
        bos, eos: the special tokens that chat templates ask for, as text; "" if there is none.
        end_ids: ids that end a turn.
        chat_template: source of the chat template, or None.
    """

    def __init__(self, directory: Path) -> None:
        """Loads from a Hugging Face checkpoint directory.

        Raises:
            UnsupportedTokenizerError: if files are missing or the tokenizer is of an unknown kind.
        """
        file = directory / "tokenizer.json"
        if not file.is_file():
            raise UnsupportedTokenizerError(f"{file} is missing: the checkpoint needs a fast tokenizer")
        self._marking = tokenizers.Tokenizer.from_file(str(file))
        self._literal = tokenizers.Tokenizer.from_file(str(file))
        self._literal.encode_special_tokens = True
        self.vocabulary = Vocabulary(self._marking)
        config = _read(directory / "tokenizer_config.json")
        self.bos, self.eos = _content(config.get("bos_token")), _content(config.get("eos_token"))
        self.end_ids = _end_ids(directory, self._marking.token_to_id(self.eos) if self.eos else None)
        self.chat_template = _chat_template(directory, config)
        self._special_texts = [
            added.content
            for added in self._marking.get_added_tokens_decoder().values()
            if added.special and added.content
        ]
        self._check_vocabulary()

    def encode(self, text: str, *, special: bool, bos: bool = False) -> array[int]:
        """Encodes text.

        Args:
            text: any text.
            special: whether names of special tokens in it become those tokens (a template's own text), or
                stay the plain text that they are (what users write).
            bos: add what the tokenizer puts around a whole prompt, unless the text begins with it already.

        Returns:
            Token ids, an array of type "I".
        """
        tokenizer = self._marking if special else self._literal
        bos = bos and not (self.bos and text.startswith(self.bos))
        return array("I", tokenizer.encode(text, add_special_tokens=bos).ids)

    def encode_after(self, anchor: str, text: str) -> array[int]:
        """Encodes user text that goes on after `anchor`, as if both were encoded together.

        Where no token border falls between the two, `text` is encoded alone.

        Returns:
            Token ids of `text`, an array of type "I".
        """
        head, whole = self.encode(anchor, special=False), self.encode(anchor + text, special=False)
        return whole[len(head) :] if whole[: len(head)] == head else self.encode(text, special=False)

    def names_special(self, text: str) -> bool:
        """Whether the text contains the name of a special token."""
        return any(name in text for name in self._special_texts)

    def ends_special(self, text: str) -> bool:
        """Whether the text ends with the name of a special token."""
        return text.endswith(tuple(self._special_texts))

    def _check_vocabulary(self) -> None:
        ids = self.encode(SAMPLE, special=False)
        ours = b"".join(self.vocabulary.token_bytes(i) for i in ids).decode("utf-8", errors="replace")
        theirs = self._marking.decode(list(ids), skip_special_tokens=False)
        if ours.lstrip() != theirs.lstrip():
            raise UnsupportedTokenizerError(
                f"tokenizer.json decodes its own tokens to {theirs!r}, but their bytes are {ours!r}"
            )


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except ValueError as error:
        raise UnsupportedTokenizerError(f"{file} is not JSON: {error}") from None
    return value if isinstance(value, dict) else {}


def _content(token: Any) -> str:
    """Special tokens are written as text or as an object with the text in it."""
    if isinstance(token, dict):
        token = token.get("content")
    return token or ""


def _end_ids(directory: Path, eos_id: int | None) -> frozenset[int]:
    ids = {eos_id}
    for name in ("generation_config.json", "config.json"):
        value = _read(directory / name).get("eos_token_id")
        ids |= set(value) if isinstance(value, list) else {value}
    return frozenset(i for i in ids if i is not None)


def _chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template
