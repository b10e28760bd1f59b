"""Tasks: what is planted in a text, and what is asked about it.

The tasks follow the published definitions of RULER (arXiv 2404.06654, section 3): needles with one or many
keys, values and queries, variable tracking, common and frequent words, questions over stated facts.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from random import Random

from reference_model.facts import (
    CITIES,
    MENTIONED,
    Fact,
    capital,
    number,
    person,
    some_entity,
    some_fact,
    some_value,
)

Turn = tuple[str, str]
_SMALL_TALK: tuple[Turn, ...] = (
    ("Hello!", "Hello. Give me a text and ask me what it says."),
    ("Hi, how are you?", "Hello. Give me a text and ask me what it says."),
    ("Who are you?", "I am a small model that looks things up in long texts."),
    ("Thank you.", "You are welcome."),
    ("Thanks a lot!", "You are welcome."),
)


@dataclass
class Episode:
    """Sentences to plant, in this order, and the turns about them.

    `fill` says what surrounds them: a book, dull repeated sentences, or nothing.
    `quotes` sentences of the surrounding text are asked for as well; at the end the text is to be continued
    by `continued` tokens.
    """

    planted: list[str]
    turns: list[Turn]
    fill: str = "book"
    quotes: int = 0
    continued: int = 0


@dataclass(frozen=True)
class Size:
    """How many facts to plant and how many questions to ask at most."""

    facts: int
    turns: int


def needles(rng: Random, words: list[str], size: Size) -> Episode:
    """Facts scattered in a text. Some share their attribute or their entity with others."""
    facts = _distinct_facts(rng, words, rng.choice((1, 2, *[size.facts] * 6)))
    turns = [
        fact.reverse_question() if rng.random() < 0.06 else fact.question(rng)
        for fact in rng.sample(facts, min(len(facts), size.turns))
    ]
    planted = [fact.statement(rng) for fact in facts]
    rng.shuffle(planted)
    if size.turns > 1 and rng.random() < 0.15:
        told = some_fact(rng, words)
        turns.insert(0, (f"Remember this: {told.statement(rng)}", "I will remember that."))
        turns.insert(rng.randint(1, len(turns)), told.question(rng))
    if rng.random() < 0.05:
        turns.insert(rng.randint(0, len(turns)), rng.choice(_SMALL_TALK))
    return Episode(planted, turns, fill=rng.choices(("book", "noise"), (9, 1))[0])


def few(kind: str, rng: Random, words: list[str], size: Size) -> Episode:
    """At most four facts with values of one kind, and a question about each."""
    facts = [some_fact(rng, words, kind) for _ in range(min(4, size.turns))]
    planted = [fact.statement(rng) for fact in facts]
    rng.shuffle(planted)
    return Episode(planted, [fact.question(rng) for fact in facts])


def dictionary(rng: Random, words: list[str], size: Size) -> Episode:
    """Nothing but facts of one phrasing: every other line distracts."""
    kind = rng.choice(("number", "word", "uuid"))
    pattern = rng.choice(
        ("{e}: {v}", "{e} = {v}", "One of the {a}s for {e} is: {v}.", "The {a} of {e} is {v}.")
    )
    base = some_fact(rng, words, kind)
    keys = sorted({some_entity(rng, words) for _ in range(size.facts)})
    rng.shuffle(keys)
    facts = [Fact(base.attribute, key, some_value(rng, words, kind), base.preposition) for key in keys]
    asked = rng.sample(facts, min(len(facts), size.turns))
    if "{a}" in pattern:
        turns = [fact.question(rng) for fact in asked]
    else:
        turns = [
            (f"What is the value of {fact.entity}?", f"The value of {fact.entity} is {fact.value}.")
            for fact in asked
        ]
    return Episode([fact.phrase(pattern) for fact in facts], turns, fill="nothing")


def multi(rng: Random, words: list[str], size: Size) -> Episode:
    """Several values under one key, and several keys in one question."""
    planted: list[str] = []
    turns: list[Turn] = []
    room = max(2, size.facts)
    while room >= 2 and len(turns) < size.turns:
        count = min(room, rng.randint(2, 5))
        room -= count
        base = some_fact(rng, words, rng.choices(("number", "word", "uuid"), (6, 3, 1))[0])
        kind = "number" if base.value[-1].isdigit() and len(base.value) < 12 else "word"
        ways = rng.random()
        if ways < 0.5:
            facts = [
                Fact(base.attribute, base.entity, some_value(rng, words, kind), base.preposition)
                for _ in range(count)
            ]
            question = rng.choice(
                (
                    "What are all the {a}s {p} {e} mentioned in the text?",
                    f"What are all the {{a}}s {{p}} {{e}}{MENTIONED}?",
                    "List all {a}s {p} {e}.",
                )
            )
            where = MENTIONED if MENTIONED in question else ""
            values = ", ".join([fact.value for fact in facts])
            turns.append((base.phrase(question), base.phrase(f"The {{a}}s {{p}} {{e}}{where} are {values}.")))
            template = rng.choice(("One of the {a}s {p} {e} is: {v}.", "One of the {a}s {p} {e} is {v}."))
        else:
            facts = [
                Fact(base.attribute, some_entity(rng, words), some_value(rng, words, kind), base.preposition)
                for _ in range(count)
            ]
            asked = ", ".join([fact.entity for fact in facts])
            where = rng.choice(("", MENTIONED))
            if ways < 0.7:
                question = base.phrase("Tell me the {a}s {p} ") + asked + "."
                answer = ", ".join([fact.phrase("the {a} {p} {e} is {v}") for fact in facts])
            else:
                question = base.phrase("What are the {a}s {p} ") + asked + where + "?"
                values = ", ".join([fact.value for fact in facts])
                answer = base.phrase("the {a}s {p} ") + f"{asked}{where} are {values}"
            turns.append((question, capital(answer) + "."))
            rng.shuffle(facts)
            template = rng.choice(("One of the {a}s {p} {e} is: {v}.", "The {a} {p} {e} is {v}."))
        planted = _merge(rng, planted, [fact.phrase(template) for fact in facts])
    return Episode(planted, turns)


def tracking(rng: Random, words: list[str], size: Size) -> Episode:
    """Chains of variable assignments: which variables hold a value, and what a variable holds."""
    planted: list[str] = []
    turns: list[Turn] = []
    for _ in range(rng.randint(1, max(1, min(4, size.facts // 4)))):
        names = [
            "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=rng.choice((3, 5))))
            for _ in range(rng.randint(2, 6))
        ]
        value = number(rng, (5, 5))
        lines = [f"VAR {names[0]} = {value}."]
        lines += [f"VAR {name} = VAR {before}." for before, name in pairwise(names)]
        planted = _merge(rng, planted, lines)
        turns.append(
            (
                f"Find all variables that are assigned the value {value} in the text above.",
                f"The variables with the value {value} are {', '.join(names)}.",
            )
        )
        last = rng.randrange(len(names))
        steps = [f"{names[i]} = {names[i - 1]}" for i in range(last, 0, -1)] + [f"{names[0]} = {value}"]
        turns.append(
            (
                f"What is the value of the variable {names[last]}?",
                ", ".join(steps) + f". The value is {value}.",
            )
        )
    rng.shuffle(turns)
    return Episode(planted, turns[: size.turns], fill=rng.choices(("book", "noise"), (1, 1))[0])


def people(rng: Random, words: list[str], size: Size) -> Episode:
    """Small biographies; questions of one hop, and of two hops answered step by step."""
    count = max(2, size.facts // 3)
    names = sorted({person(rng) for _ in range(count)})
    towns = {name: rng.choice((*CITIES, *map(capital, rng.choices(words, k=20)))) for name in names}
    pets = {name: rng.choice(words) for name in names}
    years = {name: str(rng.randint(1700, 1999)) for name in names}
    masters = {name: rng.choice(names) for name in names}
    planted: list[str] = []
    turns: list[Turn] = []
    for name in names:
        planted += [
            rng.choice(("{n} lives in {t}.", "{n} has a house in {t}.", "The home of {n} is in {t}.")).format(
                n=name, t=towns[name]
            ),
            rng.choice(("{n} was born in {y}.", "In {y} {n} was born.")).format(n=name, y=years[name]),
            rng.choice(("{n} keeps a {p}.", "{n} owns a {p}.", "{n} is very fond of a {p}.")).format(
                n=name, p=pets[name]
            ),
        ]
        master = masters[name]
        turns += [
            (f"Where does {name} live?", f"{name} lives in {towns[name]}."),
            (f"When was {name} born?", f"{name} was born in {years[name]}."),
            (f"What does {name} keep?", f"{name} keeps a {pets[name]}."),
        ]
        if master != name:
            planted.append(rng.choice(("{n} works for {m}.", "{n} serves {m}.")).format(n=name, m=master))
            turns += [
                (f"For whom does {name} work?", f"{name} works for {master}."),
                (
                    f"In which town does the person live for whom {name} works?",
                    f"{name} works for {master}, and {master} lives in {towns[master]}.",
                ),
            ]
    rng.shuffle(planted)
    return Episode(planted, rng.sample(turns, min(len(turns), size.turns)))


def quotes(rng: Random, words: list[str], size: Size) -> Episode:
    """Sentences of the text itself are to be completed."""
    return Episode([], [], quotes=max(1, size.turns // 2))


def continuation(rng: Random, words: list[str], size: Size) -> Episode:
    """After a question or two, the text is to be continued."""
    facts = _distinct_facts(rng, words, rng.choice((0, 0, 1, 2)))
    turns = [fact.question(rng) for fact in facts]
    return Episode(
        [fact.statement(rng) for fact in facts], turns, continued=rng.randint(60, 120) * size.turns // 2
    )


def word_lists(rng: Random, words: list[str], size: Size) -> Episode:
    """The most frequent words of a list (common words: few stand out; frequent words: a Zipf law)."""
    total = size.facts * 6
    chosen = rng.sample(words, min(len(words), max(8, total // 4)))
    if rng.random() < 0.5:
        top = rng.choice((3, 5, 10)) if total > 200 else 3
        common = chosen[:top]
        often = max(4, total // (2 * top))
        items = common * often + rng.choices(chosen[top:], k=total - top * often)
        rng.shuffle(items)
        common.sort(key=items.index)
    else:
        top = 3
        items = rng.choices(chosen, [1 / (rank + 1) ** 1.5 for rank in range(len(chosen))], k=total)
        common = [word for word, _ in Counter(items).most_common(top)]
    if rng.random() < 0.3:
        items = [f"{place}. {word}" for place, word in enumerate(items, 1)]
    question = f"What are the {top} most common words in the {rng.choice(('', 'above '))}list?"
    return Episode(
        [" ".join(items)], [(question, f"The most common words are {', '.join(common)}.")], fill="nothing"
    )


TASKS: dict[str, Callable[[Random, list[str], Size], Episode]] = {
    "few_numbers": partial(few, "number"),
    "few_words": partial(few, "word"),
    "few_uuids": partial(few, "uuid"),
    "needles": needles,
    "dictionary": dictionary,
    "multi": multi,
    "tracking": tracking,
    "people": people,
    "quotes": quotes,
    "continue": continuation,
    "word_lists": word_lists,
}


def _distinct_facts(rng: Random, words: list[str], count: int) -> list[Fact]:
    """Facts of which no two share both attribute and entity; a quarter shares one of them with another."""
    facts: dict[tuple[str, str], Fact] = {}
    for _ in range(count):
        fact = some_fact(rng, words)
        if facts and rng.random() < 0.3:
            other = rng.choice(list(facts.values()))
            fact = (
                Fact(other.attribute, fact.entity, some_value(rng, words, "number"), other.preposition)
                if rng.random() < 0.7
                else Fact(fact.attribute, other.entity, fact.value, fact.preposition)
            )
        facts.setdefault((fact.attribute, fact.entity), fact)
    return list(facts.values())


def _merge(rng: Random, first: list[str], second: list[str]) -> list[str]:
    """Interleaves two lists at random and keeps the order within each."""
    picks = [True] * len(first) + [False] * len(second)
    rng.shuffle(picks)
    one, two = iter(first), iter(second)
    return [next(one) if pick else next(two) for pick in picks]
