"""Aggregation: the most common words of a list or of a coded text (RULER, section 3.3)."""

from __future__ import annotations

from random import Random
from string import ascii_lowercase

from tactic.workers.evaluation.tasks.episode import Episode, Style

COMMON, COMMON_TIMES, OTHER_TIMES = 10, 30, 3
EXPONENT = 2.0


def common_words(rng: Random, words: list[str], style: Style) -> Episode:
    """Ten words stand 30 times, others three times; in short contexts the ten take half of the list."""
    pool = list(words)
    rng.shuffle(pool)
    common = pool[:COMMON]

    def items(inner: Random, count: int) -> list[str]:
        times = max(OTHER_TIMES + 1, min(COMMON_TIMES, count // (2 * COMMON)))
        rest = max(0, count - times * COMMON)
        others = (pool[COMMON:] * (1 + rest // len(pool)))[: -(-rest // OTHER_TIMES)]
        listed = common * times + (others * OTHER_TIMES)[:rest]
        inner.shuffle(listed)
        return [f"{place}. {word}" for place, word in enumerate(listed, 1)]

    question = f"What are the {COMMON} most common words in the above list?"
    if style == "reference":
        gold = f"The most common words are {', '.join(common)}."
        return Episode(question=question, gold=gold, expected=common, fill=items, separator=" ")
    return Episode(
        intro=(
            "Below is a numbered list of words. In these words, some appear more often than others. "
            "Memorize the ones that appear most often.\n"
        ),
        question=f"Question: {question}",
        prefix=f"Answer: The top {COMMON} words that appear most often in the list are:",
        gold=f" {', '.join(common)}.",
        expected=common,
        fill=items,
        separator=" ",
    )


def frequent_words(rng: Random, words: list[str], style: Style) -> Episode:
    """Coded words by a Zipf law of exponent 2; the first are dots, the next three are asked for."""
    coded = ["...."] + ["".join(rng.choices(ascii_lowercase, k=6)) for _ in range(200)]
    top = coded[1:4]

    def items(inner: Random, count: int) -> list[str]:
        weights = [1 / rank**EXPONENT for rank in range(1, len(coded) + 1)]
        listed = [
            word
            for word, weight in zip(coded, weights, strict=True)
            for _ in range(round(count * weight / sum(weights)))
        ]
        inner.shuffle(listed)
        return listed

    if style == "reference":
        return Episode(
            question="What are the 3 most common words in the above list?",
            gold=f"The most common words are {', '.join(top)}.",
            expected=top,
            fill=items,
            separator=" ",
        )
    return Episode(
        intro=(
            "Read the following coded text and track the frequency of each coded word. "
            "Find the three most frequently appeared coded words. "
        ),
        question=(
            "Question: Do not provide any explanation. Please ignore the dots '....'. "
            "What are the three most frequently appeared words in the above coded text?"
        ),
        prefix="Answer: According to the coded text above, the three most frequently appeared words are:",
        gold=f" {', '.join(top)}.",
        expected=top,
        fill=items,
        separator=" ",
    )
