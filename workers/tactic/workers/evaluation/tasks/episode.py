"""What a task plants and asks, before there are any tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Literal

Style = Literal["ruler", "reference"]
"""Wording and layout: RULER's own, or those that the reference model was trained on."""

STYLES: tuple[Style, ...] = ("ruler", "reference")

Compose = Callable[[Random, int], list[str]]
"""Items of a context, as many as asked for, what is planted among them."""


@dataclass(frozen=True)
class Episode:
    """One question about one context.

    Attributes:
        question: what is asked.
        gold: a right answer, as it would stand after `prefix`; only a guess that speeds up decoding.
        expected: strings that are looked for in the answer.
        fill: what the context is made of: "book", "noise" (RULER's dull sentences), or composed items.
        planted: sentences put into a book or noise, in this order.
        separator: between composed items.
        intro: instruction before the context.
        prefix: opening of the answer, given to the model.
        any_of: one of the expected strings is enough (RULER's `string_match_part`); else their share
            counts (`string_match_all`).
    """

    question: str
    gold: str
    expected: Sequence[str]
    fill: Literal["book", "noise"] | Compose = "book"
    planted: Sequence[str] = field(default_factory=list)
    separator: str = "\n"
    intro: str = ""
    prefix: str = ""
    any_of: bool = False

    def score(self, answer: str) -> float:
        """Share of the expected strings that the answer holds, in any case of letters; 0 … 1."""
        found = [text.lower() in answer.lower() for text in self.expected]
        return float(any(found)) if self.any_of else sum(found) / len(found)
