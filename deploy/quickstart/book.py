"""The demo's text: a public-domain book with two facts planted in it."""

import lzma
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

BOOK = Path(__file__).with_name("book.txt.xz")


@dataclass(frozen=True)
class Fact:
    """A sentence that no book contains, a question about it, and what a right answer holds."""

    sentence: str
    question: str
    value: str
    # Where it is planted, as a share of the text.
    depth: float


FACTS = (
    Fact(
        "The secret passphrase of the lighthouse keeper is 48213.",
        "What is the secret passphrase of the lighthouse keeper?",
        "48213",
        0.35,
    ),
    Fact(
        "The magic number for Oslo is 7391846.",
        "What is the magic number for Oslo?",
        "7391846",
        0.7,
    ),
)


def read_book() -> str:
    """Returns the whole book."""
    return lzma.decompress(BOOK.read_bytes()).decode()


def first_tokens(book: str, tokens: int, model: Path) -> list[int]:
    """Returns the model's ids of the book's first tokens."""
    ids: list[int] = _tokenizer(model).encode(book, add_special_tokens=False).ids
    return ids[:tokens]


def excerpt(book: str, tokens: int, model: Path) -> str:
    """Returns the start of the book, about `tokens` tokens of it for the model, with the facts planted."""
    tokenizer = _tokenizer(model)
    facts = sum(len(tokenizer.encode(fact.sentence + "\n\n").ids) for fact in FACTS)
    budget = max(0, tokens - facts)
    encoding = tokenizer.encode(book)
    text = book[: encoding.offsets[budget][0]] if budget < len(encoding.ids) else book
    paragraphs = text.split("\n\n")
    for fact in sorted(FACTS, key=lambda fact: -fact.depth):
        paragraphs.insert(round(fact.depth * len(paragraphs)), fact.sentence)
    return "\n\n".join(paragraphs)


def _tokenizer(model: Path) -> Tokenizer:
    return Tokenizer.from_file(str(model / "tokenizer.json"))
