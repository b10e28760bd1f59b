"""Question answering of one and two hops.

RULER takes SQuAD and HotpotQA, hidden among other documents. They are not part of this project: here small
biographies are planted in a book, those of other people as distractors, and one of them is asked about.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tactic.workers.evaluation.tasks.episode import Episode, Style

_LISTS: dict[str, list[str]] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
_INSTRUCTION = (
    "Answer the question based on the given documents. "
    "Only give me the answer and do not output any other words."
)


@dataclass(frozen=True)
class People:
    """Where somebody lives, or the person for whom somebody works.

    Attributes:
        hops: 1 or 2.
        people: biographies planted.
    """

    hops: int
    people: int = 12

    def __call__(self, rng: Random, words: list[str], style: Style) -> Episode:
        """Draws an episode."""
        first, last, towns = (
            rng.sample(_LISTS[kind], self.people) for kind in ("names", "surnames", "towns")
        )
        names = [f"{one} {two}" for one, two in zip(first, last, strict=True)]
        homes = dict(zip(names, towns, strict=True))
        masters = dict(zip(names, [*names[1:], names[0]], strict=True))
        planted = [f"{name} lives in {homes[name]}." for name in names]
        planted += [f"{name} works for {masters[name]}." for name in names]
        rng.shuffle(planted)
        asked = rng.choice(names)
        master = masters[asked]
        if self.hops == 1:
            question, town = f"Where does {asked} live?", homes[asked]
            gold = f"{asked} lives in {town}."
        else:
            question, town = f"In which town does the person live for whom {asked} works?", homes[master]
            gold = f"{asked} works for {master}, and {master} lives in {town}."
        if style == "reference":
            return Episode(question=question, gold=gold, expected=[town], planted=planted, any_of=True)
        return Episode(
            intro=f"{_INSTRUCTION}\n\nThe following are given documents.\n\n",
            question=f"{_INSTRUCTION}\n\nQuestion: {question}",
            prefix="Answer:",
            gold=f" {town}",
            expected=[town],
            planted=planted,
            any_of=True,
        )
