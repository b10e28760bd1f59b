"""Variable tracking: which variables hold a value (RULER, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from random import Random
from string import ascii_uppercase

from tactic.workers.evaluation.tasks.episode import Episode, Style


@dataclass(frozen=True)
class Tracking:
    """One chain of assignments in dull sentences. Without RULER's worked example before the question.

    Attributes:
        hops: assignments of one variable to another.
    """

    hops: int = 4

    def __call__(self, rng: Random, words: list[str], style: Style) -> Episode:
        """Draws an episode."""
        names: list[str] = []
        while len(names) <= self.hops:
            name = "".join(rng.choices(ascii_uppercase, k=5))
            if name not in names:
                names.append(name)
        value = str(rng.randint(10**4, 10**5 - 1))
        planted = [f"VAR {names[0]} = {value}."]
        planted += [f"VAR {name} = VAR {before}." for before, name in pairwise(names)]
        question = f"Find all variables that are assigned the value {value} in the text above."
        if style == "reference":
            return Episode(
                question=question,
                gold=f"The variables with the value {value} are {', '.join(names)}.",
                expected=names,
                fill="noise",
                planted=planted,
            )
        return Episode(
            intro="Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
            question=f"Question: {question}",
            prefix=(
                "Answer: According to the chain(s) of variable assignment in the text above, "
                f"{len(names)} variables are assigned the value {value}, they are:"
            ),
            gold=f" {', '.join(names)}.",
            expected=names,
            fill="noise",
            planted=planted,
        )
