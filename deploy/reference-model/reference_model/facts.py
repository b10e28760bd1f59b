"""Facts of the form "the attribute of an entity is a value" in many phrasings, and questions about them."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from random import Random

_PHRASES: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("phrases.toml").read_text())
CITIES = _PHRASES["cities"]
MENTIONED = " mentioned in the provided text"


@dataclass(frozen=True)
class Fact:
    """One planted fact."""

    attribute: str
    entity: str
    value: str
    preposition: str

    def statement(self, rng: Random) -> str:
        return self.phrase(rng.choice(_PHRASES["statements"]))

    def question(self, rng: Random) -> tuple[str, str]:
        """A question and its answer; the answer's opening follows from the question alone."""
        template = rng.choice(_PHRASES["questions"])
        question = self.phrase(template)
        if rng.random() < 0.2:
            return question + self.phrase(rng.choice(_PHRASES["brief"])), self.phrase("It is {v}.")
        where = MENTIONED if MENTIONED in template else ""
        preposition = "{p}" if "{p}" in template else "of"
        return question, self.phrase(f"The {{a}} {preposition} {{e}}{where} is {{v}}.")

    def reverse_question(self) -> tuple[str, str]:
        return f"What is {self.value}?", self.phrase("It is the {a} {p} {e}.")

    def phrase(self, template: str) -> str:
        """Fills a template; a sentence that opens with the entity or the value gets a capital."""
        text = template.format(
            a=self.attribute, e=self.entity, v=self.value, p=self.preposition, E=capital(self.entity)
        )
        return text[0].upper() + text[1:] if template.startswith("{a}") else text


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def number(rng: Random, digits: tuple[int, int] = (3, 10)) -> str:
    size = rng.randint(*digits)
    return str(rng.randint(10 ** (size - 1), 10**size - 1))


def uuid(rng: Random) -> str:
    text = f"{rng.getrandbits(128):032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def person(rng: Random) -> str:
    return f"{rng.choice(_PHRASES['names'])} {rng.choice(_PHRASES['surnames'])}"


def some_words(rng: Random, words: list[str]) -> str:
    return " ".join(rng.choices(words, k=rng.choice((1, 1, 2, 2, 3))))


def some_value(rng: Random, words: list[str], kind: str) -> str:
    """A value of a kind: number, word or uuid."""
    if kind == "number":
        return (
            number(rng)
            if rng.random() < 0.9
            else f"{rng.choice('ABCDEFGHKLMNPRSTVWXZ')}-{number(rng, (3, 6))}"
        )
    return some_words(rng, words) if kind == "word" else uuid(rng)


def some_entity(rng: Random, words: list[str]) -> str:
    """A key: a trade, city, person, thing or, half of the time, words that name nothing."""
    draw = rng.random()
    if draw < 0.12:
        adjective = f"{rng.choice(words)} " if rng.random() < 0.4 else ""
        return f"the {adjective}{rng.choice(_PHRASES['trades'])}"
    if draw < 0.22:
        return rng.choice(CITIES)
    if draw < 0.34:
        return person(rng)
    if draw < 0.46:
        middle = rng.choice(
            (
                rng.choice(_PHRASES["colors"]),
                rng.choice(words),
                f"{rng.choice(_PHRASES['colors'])} {rng.choice(words)}",
            )
        )
        return f"the {middle} {rng.choice(_PHRASES['things'])}"
    if draw < 0.52:
        return (
            f"{rng.choice(('Project', 'Operation', 'Room', 'Agent', 'Mount'))} {capital(rng.choice(words))}"
        )
    if draw < 0.56:
        return uuid(rng)
    if draw < 0.78:
        return f"{rng.choice(words)}-{rng.choice(words)}"
    if draw < 0.88:
        return f"the {rng.choice(words)} {rng.choice(words)}"
    return rng.choice(words)


def some_fact(rng: Random, words: list[str], kind: str | None = None, entity: str | None = None) -> Fact:
    """A fact with a number (most often), word or UUID value."""
    kind = kind or rng.choices(("number", "word", "uuid"), (5, 3, 2))[0]
    attribute = rng.choice(_PHRASES[f"{kind}_attributes"])
    if rng.random() < 0.15:
        attribute = f"{rng.choice(words)} {rng.choice(('number', 'code', 'word', 'name', 'id'))}"
    return Fact(
        attribute, entity or some_entity(rng, words), some_value(rng, words, kind), rng.choice(("of", "for"))
    )
