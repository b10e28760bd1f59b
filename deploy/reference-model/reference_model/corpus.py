"""Book text as token arrays with the places where a sentence may be planted."""

import json
import lzma
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from reference_model.tokenizer import Codec, train_tokenizer

HELD_OUT = "sherlock-holmes"
NOISE = (
    " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    " The river runs to the sea. The night is long. The road goes on."
)
_NOISE_TOKENS = 140_000

Tokens = NDArray[np.int64]


@dataclass
class Source:
    """One text. `sentences` and `paragraphs` are positions before which a new one begins."""

    name: str
    tokens: NDArray[np.uint16]
    sentences: Tokens
    paragraphs: Tokens

    def starts(self, first: int, last: int, paragraphs: bool) -> Tokens:
        """Sentence (or paragraph) starts in [first, last), relative to `first`."""
        places = self.paragraphs if paragraphs else self.sentences
        low, high = np.searchsorted(places, [first, last])
        return places[low:high] - first


@dataclass
class Corpus:
    """The texts that rows are cut from, and the words that keys and values are made of."""

    sources: list[Source]
    noise: Source
    words: list[str]

    def __post_init__(self) -> None:
        self._sizes = [len(source.tokens) for source in self.sources]

    def draw(self, rng: Random, length: int) -> tuple[Source, int]:
        """A text, chosen by size, and a sentence start from which `length` tokens follow."""
        fits = [size if size > length + 512 else 0 for size in self._sizes]
        if not any(fits):
            raise ValueError(f"no book has {length} tokens; the longest has {max(self._sizes)}")
        source = rng.choices(self.sources, fits)[0]
        last = int(np.searchsorted(source.sentences, len(source.tokens) - length, "right")) - 1
        return source, int(source.sentences[rng.randint(0, last)])


def prepare(books: Path, out: Path) -> None:
    """Trains the tokenizer on the training books and writes all books as uint16 token files into `out`.

    Raises:
        FileNotFoundError: `books` holds no `*.txt.xz`, or the held-out book is missing.
    """
    paths = sorted(books.glob("*.txt.xz"))
    names = [path.name.removesuffix(".txt.xz") for path in paths]
    if HELD_OUT not in names or len(names) < 2:
        raise FileNotFoundError(f"{books} must hold {HELD_OUT}.txt.xz and other books as *.txt.xz")
    texts = {
        name: lzma.decompress(path.read_bytes()).decode() for name, path in zip(names, paths, strict=True)
    }
    out.mkdir(parents=True, exist_ok=True)
    print(
        f"{len(texts)} books, {sum(map(len, texts.values())):,} characters; training the tokenizer …",
        flush=True,
    )
    codec = Codec(train_tokenizer(text for name, text in texts.items() if name != HELD_OUT))
    codec.tokenizer.save(str(out / "tokenizer.json"))
    for name, text in texts.items():
        tokens = np.array(codec.encode(text), dtype=np.uint16)
        np.save(out / f"{name}.npy", tokens)
        print(f"{name}: {len(tokens):,} tokens, {len(text) / len(tokens):.2f} characters each", flush=True)
    counts = Counter(
        word
        for name, text in texts.items()
        if name != HELD_OUT
        for word in re.findall(r"\b[a-z]{4,10}\b", text)
    )
    words = sorted(word for word, count in counts.items() if count >= 40)
    (out / "words.json").write_text(json.dumps(words))
    print(f"{len(words)} words for keys and values")


def load(data: Path, codec: Codec, held_out: bool = False) -> Corpus:
    """The training books, or the held-out one, from a folder written by `prepare`."""
    names = sorted(path.stem for path in data.glob("*.npy"))
    vocabulary = [codec.tokenizer.id_to_token(index) for index in range(codec.tokenizer.get_vocab_size())]
    noise = codec.encode(NOISE)
    return Corpus(
        sources=[
            _source(name, np.load(data / f"{name}.npy"), vocabulary)
            for name in names
            if (name == HELD_OUT) == held_out
        ],
        noise=_source("noise", np.array(noise * (_NOISE_TOKENS // len(noise)), np.uint16), vocabulary),
        words=json.loads((data / "words.json").read_text()),
    )


def _source(name: str, tokens: NDArray[np.uint16], vocabulary: list[str]) -> Source:
    """Finds sentence starts from the spelling of a token and its predecessor (Ġ is a space, Ċ a newline)."""
    stops = np.array([bool(re.search(r"[.!?](âĢĿ)?$", token)) for token in vocabulary])
    breaks = np.array([token.endswith("ĊĊ") for token in vocabulary])
    opens = np.array([token.startswith("Ġ") for token in vocabulary])
    before, here = tokens[:-1], tokens[1:]
    sentences = np.flatnonzero(stops[before] & opens[here]) + 1
    paragraphs = np.flatnonzero(breaks[before] & ~opens[here]) + 1
    return Source(name, tokens, sentences, paragraphs)
