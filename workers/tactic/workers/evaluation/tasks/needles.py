"""Needles in a haystack: RULER's eight retrieval categories (arXiv 2404.06654, section 3.1, table 2)."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from tactic.workers.evaluation.tasks.episode import Episode, Style

Kind = Literal["word", "number", "uuid"]


@dataclass(frozen=True)
class Needles:
    """Keys with values are planted; the values of some keys are asked for.

    Attributes:
        fill: "book", "noise", or "needles": nothing but other needles.
        key: kind of the keys.
        value: kind of the values.
        keys: keys planted (in a haystack of needles all are).
        values: values of each key.
        queries: keys asked for.
    """

    fill: Literal["book", "noise", "needles"] = "book"
    key: Kind = "word"
    value: Kind = "number"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def __call__(self, rng: Random, words: list[str], style: Style) -> Episode:
        """Draws an episode; `words` is a vocabulary."""
        facts = [(draw(rng, words, self.key), draw(rng, words, self.value)) for _ in range(self.keys)]
        facts += [(key, draw(rng, words, self.value)) for key, _ in facts for _ in range(self.values - 1)]
        asked = [key for key, _ in facts[: self.queries]]
        noun = f"{'special ' if style == 'ruler' else ''}magic {self.value}"
        rng.shuffle(facts)
        planted = [statement(noun, *fact) for fact in facts]
        expected = [value for key in asked for other, value in facts if other == key]

        def needles(inner: Random, count: int) -> list[str]:
            others = count - len(planted)
            lines = [
                statement(noun, draw(inner, words, self.key), draw(inner, words, self.value))
                for _ in range(others)
            ]
            for line in planted:
                lines.insert(inner.randint(0, len(lines)), line)
            return lines

        wording = (_ruler if style == "ruler" else _reference)(noun, asked, expected)
        return Episode(
            question=wording.question,
            gold=wording.gold,
            expected=expected,
            fill=needles if self.fill == "needles" else self.fill,
            planted=planted,
            intro=wording.intro,
            prefix=wording.prefix,
        )


def draw(rng: Random, words: list[str], kind: Kind) -> str:
    """A key or value: two words, a number of seven digits, or a UUID."""
    if kind == "word":
        return "-".join(rng.sample(words, 2))
    if kind == "number":
        return str(rng.randint(10**6, 10**7 - 1))
    text = f"{rng.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def statement(noun: str, key: str, value: str) -> str:
    """The sentence that is planted."""
    return f"One of the {noun}s for {key} is: {value}."


@dataclass(frozen=True)
class _Wording:
    question: str
    gold: str
    intro: str = ""
    prefix: str = ""


def _ruler(noun: str, asked: list[str], expected: list[str]) -> _Wording:
    many = len(expected) > 1
    query = ", ".join(asked[:-1]) + f", and {asked[-1]}" if len(asked) > 1 else asked[0]
    wanted, verb = (f"{noun}s", "are") if many else (noun, "is")
    return _Wording(
        intro=(
            f"Some {noun}s are hidden within the following text. Make sure to memorize it. "
            f"I will quiz you about the {noun}s afterwards.\n"
        ),
        question=(
            f"What {verb} {'all ' if many else ''}the {wanted} for {query} mentioned in the provided text?"
        ),
        prefix=f"The {wanted} for {query} mentioned in the provided text {verb}",
        gold=f" {', '.join(expected)}.",
    )


def _reference(noun: str, asked: list[str], expected: list[str]) -> _Wording:
    query, values = ", ".join(asked), ", ".join(expected)
    if len(expected) == 1:
        return _Wording(f"What is the {noun} for {query}?", f"The {noun} for {query} is {values}.")
    question = (
        f"What are the {noun}s for {query}?"
        if len(asked) > 1
        else f"What are all the {noun}s for {query} mentioned in the text?"
    )
    return _Wording(question, f"The {noun}s for {query} are {values}.")
