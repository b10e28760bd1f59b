"""Facts of the form "the attribute of an entity is a value", in several phrasings, and questions about them."""

from dataclasses import dataclass
from random import Random

_NAMES = (
    "Harold Alice Edmund Clara Victor Irene Walter Beatrice Oscar Matilda Felix Rosalind Hugo Agnes Leonard Sylvia"
    " Arthur Nadia Boris Ingrid Pablo Yuki Omar Leila Chen Amara Diego Freya Lars Priya Tomas Elena Ivan Greta"
).split()
_SURNAMES = (
    "Finch Marlow Ashby Thorne Whitlock Penrose Hale Bramley Corbin Drake Eastwood Fairfax Granger Holt Ingram"
    " Jarvis Kemp Lockwood Mercer Nash Oakley Pryce Quill Radcliffe Stokes Tanner Underhill Vance Winslow Yates"
    " Tanaka Okafor Larsen Moreau Novak Silva Rossi Haddad Kowalski Petrov"
).split()
CITIES = (
    "Oslo Paris London Berlin Madrid Rome Vienna Lisbon Dublin Prague Warsaw Athens Cairo Nairobi Lagos Tokyo Kyoto"
    " Seoul Delhi Mumbai Lima Quito Bogota Havana Boston Chicago Denver Seattle Toronto Montreal Sydney Perth Auckland"
    " Geneva Zurich Munich Hamburg Cologne Krakow Budapest Sofia Riga Tallinn Vilnius Helsinki Stockholm Bergen"
    " Copenhagen Reykjavik Edinburgh Cardiff Bristol York Venice Florence Naples Turin Seville Porto Bordeaux Lyon"
    " Marseilles Bruges Antwerp Samarkand Baghdad Damascus Jakarta Manila Hanoi Bangkok"
).split()
_TRADES = (
    "lighthouse keeper|night watchman|head gardener|ship's cook|royal astronomer|village doctor|chief engineer|"
    "old librarian|clock maker|harbour master|stable boy|bank manager|station master|glass blower|court painter|"
    "museum guard|ferry pilot|chess champion|bee keeper|locksmith|blacksmith|baker|tailor|carpenter|miller|shepherd|"
    "innkeeper|captain|admiral|bishop|governor|ambassador|professor|apprentice|widow|stranger|butler|coachman|"
    "postman|fisherman|organist|weaver|banker|notary|surgeon|sculptor|conductor|translator|archivist|courier"
).split("|")
_THINGS = (
    "vault safe cabinet locker chest cellar archive laboratory engine telescope server terminal warehouse gate tower"
    " bridge vessel lantern piano printer garden library chapel observatory workshop satellite drone router database"
).split()
_COLORS = "red blue green black white silver golden purple orange brown grey yellow violet crimson scarlet pale".split()
_NUMBER_ATTRIBUTES = (
    "magic number|secret code|access code|secret number|passphrase|secret passphrase|PIN|lucky number|serial number|"
    "phone number|ticket number|room number|account number|special number|special magic number|combination|code|"
    "pass code|registration number|badge number|entry code|number|secret magic number|key|price|weight"
).split("|")
_WORD_ATTRIBUTES = (
    "secret word|password|passphrase|secret passphrase|code name|code word|favorite word|secret ingredient|magic word|"
    "special magic word|motto|hidden treasure|favorite animal|nickname|watchword|secret"
).split("|")
_UUID_ATTRIBUTES = (
    "magic uuid|special magic uuid|UUID|session token|device id|transaction id|access token|identifier|secret key|"
    "request id|tracking id|token"
).split("|")
_STATEMENTS = (
    "The {a} {p} {e} is {v}.|The {a} {p} {e} is {v}.|The {a} {p} {e} is {v}.|The {a} {p} {e} is: {v}.|"
    "One of the {a}s {p} {e} is: {v}.|One of the {a}s {p} {e} is {v}.|{E}'s {a} is {v}.|For {e}, the {a} is {v}.|"
    "Remember that the {a} {p} {e} is {v}.|Please note: the {a} {p} {e} is {v}.|"
    "Here is a fact worth keeping: the {a} {p} {e} is {v}.|It was written on the wall that the {a} {p} {e} is {v}.|"
    "Everybody knew that the {a} {p} {e} was {v}.|The {a} {p} {e} was set to {v}.|{E} has {v} as {a}.|"
    "{v} is the {a} {p} {e}."
).split("|")
_QUESTIONS = (
    "What is the {a} {p} {e}?|What is the {a} {p} {e}?|What is the {a} {p} {e}?|What is {e}'s {a}?|"
    "Tell me the {a} {p} {e}.|What was the {a} {p} {e}?|According to the text, what is the {a} {p} {e}?|"
    "What is the {a} {p} {e} mentioned in the provided text?|Find the {a} {p} {e}.|"
    "Do you remember the {a} {p} {e}?|Which {a} belongs to {e}?|Please look up the {a} {p} {e} in the text.|"
    "The text above mentions the {a} {p} {e}. What is it?|I need the {a} {p} {e}.|{E}: what is the {a}?"
).split("|")
MENTIONED = " mentioned in the provided text"
_BRIEF = (" Be brief.", " Just the {a}, please.", " Reply in a few words.")


@dataclass(frozen=True)
class Fact:
    """One planted fact."""

    attribute: str
    entity: str
    value: str
    preposition: str

    def statement(self, rng: Random) -> str:
        return self.phrase(rng.choice(_STATEMENTS))

    def question(self, rng: Random) -> tuple[str, str]:
        """A question and its answer; the answer's opening follows from the question alone."""
        template = rng.choice(_QUESTIONS)
        question = self.phrase(template)
        if rng.random() < 0.2:
            return question + self.phrase(rng.choice(_BRIEF)), self.phrase("It is {v}.")
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
    return f"{rng.choice(_NAMES)} {rng.choice(_SURNAMES)}"


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
        return f"the {adjective}{rng.choice(_TRADES)}"
    if draw < 0.22:
        return rng.choice(CITIES)
    if draw < 0.34:
        return person(rng)
    if draw < 0.46:
        middle = rng.choice(
            (rng.choice(_COLORS), rng.choice(words), f"{rng.choice(_COLORS)} {rng.choice(words)}")
        )
        return f"the {middle} {rng.choice(_THINGS)}"
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
    attributes = {"number": _NUMBER_ATTRIBUTES, "word": _WORD_ATTRIBUTES, "uuid": _UUID_ATTRIBUTES}[kind]
    attribute = rng.choice(attributes)
    if rng.random() < 0.15:
        attribute = f"{rng.choice(words)} {rng.choice(('number', 'code', 'word', 'name', 'id'))}"
    return Fact(
        attribute, entity or some_entity(rng, words), some_value(rng, words, kind), rng.choice(("of", "for"))
    )
