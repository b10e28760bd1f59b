"""Long texts as tokens, with the places where a sentence may be planted."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tactic.workers.evaluation.errors import EvaluationError

NOISE = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "  # RULER's
)
_SENTENCE_END = re.compile(r"[.!?][\"'”\u2019)]*(?=\s)")
_WORD = re.compile(r"\b[a-z]{4,10}\b")


@dataclass(frozen=True)
class Source:
    """A text.

    Attributes:
        tokens: `[n]` int64 ids.
        places: ascending indexes of tokens that begin a sentence.
    """

    tokens: NDArray[np.int64]
    places: NDArray[np.int64]

    @classmethod
    def of(cls, text: str, tokenizer: Any) -> Source:
        """Tokenizes a text."""
        coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        begins = np.array([begin for begin, _ in coded.offset_mapping], np.int64)
        ends = np.array([match.end() for match in _SENTENCE_END.finditer(text)], np.int64)
        places = np.searchsorted(begins, ends)
        places = places[places < len(begins)]
        return cls(np.array(coded.input_ids, np.int64), np.unique(places))

    def cut(self, start: int, length: int) -> Source:
        """`length` tokens from `start` on."""
        low, high = np.searchsorted(self.places, (start, start + length))
        return Source(self.tokens[start : start + length], self.places[low:high] - start)


@dataclass(frozen=True)
class Haystack:
    """What contexts are made of.

    Attributes:
        book: text of books.
        noise: RULER's dull sentences, repeated.
        words: vocabulary for keys and lists.
    """

    book: Source
    noise: Source
    words: list[str]

    @classmethod
    def load(cls, path: Path, tokenizer: Any, *, tokens: int) -> Haystack:
        """Reads as many books as `tokens` need, in order of their names.

        Args:
            path: a text file (*.txt or *.txt.xz) or a folder of them.
            tokenizer: of transformers, a fast one.
            tokens: longest context.

        Raises:
            EvaluationError: there is no text, or not enough.
        """
        parts: list[Source] = []
        texts: list[str] = []
        for text in _texts(path):
            texts.append(text)
            parts.append(Source.of(text, tokenizer))
            if sum(len(part.tokens) for part in parts) > 1.1 * tokens:
                break
        book = _join(parts)
        if len(book.tokens) < tokens:
            raise EvaluationError(
                f"--books {path}: the text has {len(book.tokens):,} tokens, a context of {tokens:,} was "
                "asked for; give a folder with more books, or a shorter --contexts"
            )
        unit = Source.of(NOISE * 50, tokenizer)
        return cls(
            book,
            _join([unit] * (1 + tokens // len(unit.tokens))),
            sorted(set(_WORD.findall(" ".join(texts)))),
        )


def _texts(path: Path) -> Iterable[str]:
    """The texts of a file or folder.

    Raises:
        EvaluationError: there is none, or it can't be read.
    """
    files = sorted([*path.glob("*.txt"), *path.glob("*.txt.xz")]) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise EvaluationError(
            f"--books {path}: no such text; give a file (*.txt, *.txt.xz) or a folder of them"
        )
    for file in files:
        data = file.read_bytes()
        try:
            yield (lzma.decompress(data) if file.suffix == ".xz" else data).decode()
        except (lzma.LZMAError, UnicodeDecodeError) as error:
            raise EvaluationError(f"--books: {file} is no UTF-8 text, or none in xz ({error})") from error


def _join(parts: list[Source]) -> Source:
    shifts = np.cumsum([0, *(len(part.tokens) for part in parts)])
    return Source(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.places + shift for part, shift in zip(parts, shifts, strict=False)]),
    )
