"""Training rows: a task laid out as tokens, with what each token counts for in the loss and its position."""

from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
from numpy.typing import NDArray
from reference_model.corpus import Corpus, Source
from reference_model.episodes import TASKS, Episode, Size, Turn
from reference_model.tokenizer import Codec

# What the prediction of a token counts for in the loss.
IGNORED, TEXT, ANSWER = 0, 1, 2
MAX_POSITION = 131072
LAYOUTS = {"system": 10, "systems": 2, "user": 3, "bare": 2, "plain": 3}
_PREAMBLES = (
    "You are a helpful assistant. Answer from the text.\n\n",
    "Read the text below and answer the questions about it.\n\n",
    "Some facts are hidden within the following text. Memorize them.\n\n",
    "Context:\n\n",
)
_CONTINUE = ("Continue the text.", "Continue the story.", "Go on with the text.", "What comes next?")
_SENTENCE_TOKENS = (14, 60)


@dataclass
class Row:
    """One row of `length + 1` tokens: uint16 tokens, uint8 classes, int32 positions."""

    tokens: NDArray[np.uint16]
    classes: NDArray[np.uint8]
    positions: NDArray[np.int32]


class RowBuilder:
    """Builds rows from random generators; a row depends on its generator alone."""

    def __init__(self, corpus: Corpus, codec: Codec) -> None:
        self.corpus = corpus
        self.codec = codec

    def build(
        self,
        rng: Random,
        task: str,
        length: int,
        *,
        skip: float = 0.0,
        layout: str | None = None,
        turns: int | None = None,
    ) -> Row:
        """A row of a task. With probability `skip` its positions jump, up to `MAX_POSITION` in all."""
        writer = _Writer()
        if task == "text":
            self._text(rng, writer, length)
        elif task == "copy":
            self._copy(rng, writer, length)
        else:
            self._task(
                rng,
                writer,
                task,
                length,
                layout or rng.choices(*zip(*LAYOUTS.items(), strict=True))[0],
                turns,
            )
        tokens, classes = writer.arrays(length + 1)
        positions = np.arange(length + 1, dtype=np.int32)
        if length < MAX_POSITION and rng.random() < skip:
            positions += _jumps(rng, length + 1)
        return Row(tokens, classes, positions)

    def _text(self, rng: Random, writer: "_Writer", length: int) -> None:
        source, start = self.corpus.draw(rng, length)
        writer.add([self.codec.begin], IGNORED)
        writer.add(source.tokens[start : start + length], TEXT)

    def _copy(self, rng: Random, writer: "_Writer", length: int) -> None:
        """Random tokens, of which pieces come again: the shortest way to teach induction."""
        noise = np.random.default_rng(rng.getrandbits(64))
        size = self.codec.tokenizer.get_vocab_size()
        writer.add([self.codec.begin], IGNORED)
        while writer.length < length:
            block = noise.integers(4, size, noise.integers(16, max(17, min(length // 3, 1024)))).astype(
                np.uint16
            )
            writer.add(block, IGNORED)
            for _ in range(rng.randint(1, 4)):
                first = rng.randrange(len(block) - 8)
                piece = block[first : first + rng.randint(8, 96)]
                writer.add(piece[:2], IGNORED)
                writer.add(piece[2:], ANSWER)

    def _task(
        self, rng: Random, writer: "_Writer", task: str, length: int, layout: str, turns: int | None
    ) -> None:
        facts = max(2, min(length // 80, 128))
        if task in ("dictionary", "word_lists"):
            facts = max(4, min(length // 40, 600))
        asked = turns or max(2, min(length // 100, 96))
        while True:
            episode = TASKS[task](rng, self.corpus.words, Size(facts, asked))
            if self._write(rng, writer, episode, length, layout):
                return
            facts, asked = max(2, facts * 2 // 3), max(1, asked * 2 // 3)

    def _write(self, rng: Random, writer: "_Writer", episode: Episode, length: int, layout: str) -> bool:
        """Lays an episode out; False if it does not fit."""
        preamble = self.codec.encode(rng.choice(_PREAMBLES)) if rng.random() < 0.2 else []
        quoted: list[Turn] = []
        source, start = self.corpus.noise, 0
        if episode.fill != "noise":
            source, start = self.corpus.draw(rng, length)
        if episode.quotes:
            quoted = self._quotes(rng, source, start, length - 120 * episode.quotes, episode.quotes)
        planted = _Planted(self.codec, rng, episode)
        turns = _turns(self.codec, [*episode.turns, *quoted], layout)
        if episode.continued:
            turns += _turns(self.codec, [(rng.choice(_CONTINUE), "")], layout)
        asked = sum(len(ask) + len(reply) for ask, reply in turns)
        room = length + 1 - 20 - len(preamble) - planted.length - asked - episode.continued
        if room < 24 or not turns:
            return False
        after: list[int] = []
        if episode.continued:
            ends = source.starts(start, start + room, paragraphs=False)
            room = int(ends[-1]) if len(ends) and ends[-1] > 0 else room
            text = self.codec.decode(source.tokens[start + room : start + room + episode.continued])
            after = self.codec.encode(text.lstrip() if layout != "plain" else text)
            turns[-1] = (turns[-1][0], [])
        context = _Writer()
        context.add(preamble, IGNORED)
        planted.write(rng, context, source, start, source.tokens[start : start + room])
        self._lay_out(rng, writer, context, turns, layout)
        writer.add(after, TEXT)
        return True

    def _lay_out(
        self,
        rng: Random,
        writer: "_Writer",
        context: "_Writer",
        turns: list[tuple[list[int], list[int]]],
        layout: str,
    ) -> None:
        codec = self.codec
        writer.add([codec.begin], IGNORED)
        if layout in ("system", "systems"):
            cuts = (
                sorted(rng.randrange(context.length) for _ in range(rng.randint(1, 2)))
                if layout == "systems"
                else []
            )
            writer.add(codec.headers["system"], IGNORED)
            writer.extend(context, cuts, [codec.end, *codec.headers["system"]])
            writer.add([codec.end], IGNORED)
        elif layout == "user":
            writer.add(codec.headers["user"], IGNORED)
            writer.extend(context, [], [])
            first, turns = turns[0], turns[1:]
            writer.add([*codec.encode("\n\n"), *first[0][len(codec.headers["user"]) :]], IGNORED)
            writer.add(first[1], ANSWER)
        else:
            writer.extend(context, [], [])
        for ask, reply in turns:
            writer.add(ask, IGNORED)
            writer.add(reply, ANSWER)

    def _quotes(self, rng: Random, source: Source, start: int, room: int, count: int) -> list[Turn]:
        """Questions for the rest of sentences that stand in the text."""
        places = source.starts(start, start + max(room, 64), paragraphs=False)
        spans = [
            (first, last)
            for first, last in pairwise(places)
            if _SENTENCE_TOKENS[0] <= last - first <= _SENTENCE_TOKENS[1]
        ]
        turns = []
        for first, last in rng.sample(spans, min(count, len(spans))):
            split = first + rng.randint(5, 8)
            ids = source.tokens[start + first : start + last]
            opening, rest = self.codec.decode(ids[: split - first]), self.codec.decode(ids[split - first :])
            ask = rng.choice(
                ("Complete the sentence of the text that begins:", "How does this sentence go on:")
            )
            turns.append((f"{ask}{opening}", f"It goes on:{rest}"))
        return turns


class _Planted:
    """The planted sentences as tokens, each with the kind of place it fits in."""

    def __init__(self, codec: Codec, rng: Random, episode: Episode) -> None:
        self.scattered = episode.fill != "nothing"
        self.pieces: list[tuple[list[int], bool]] = []
        if self.scattered:
            for text in episode.planted:
                paragraph = episode.fill == "book" and rng.random() < 0.25
                self.pieces.append((codec.encode(f"{text}\n\n" if paragraph else f" {text}"), paragraph))
        else:
            self.pieces.append((codec.encode("\n\n" + "\n".join(episode.planted) + "\n\n"), False))
        self.length = sum(len(ids) for ids, _ in self.pieces)

    def write(
        self, rng: Random, writer: "_Writer", source: Source, start: int, hay: NDArray[np.uint16]
    ) -> None:
        """Writes the text with the sentences at random depths, in their order."""
        if not self.scattered:
            at = rng.choice((0, len(hay)))
            writer.add(hay[:at], TEXT)
            writer.add(self.pieces[0][0], IGNORED)
            writer.add(hay[at:], TEXT)
            return
        places = [source.starts(start, start + len(hay), paragraphs) for paragraphs in (False, True)]
        done = 0
        for depth, (ids, paragraph) in zip(
            sorted(rng.randrange(len(hay)) for _ in self.pieces), self.pieces, strict=True
        ):
            fits = places[paragraph] if len(places[paragraph]) else places[False]
            index = int(np.searchsorted(fits, max(depth, done)))
            at = int(fits[index]) if index < len(fits) else len(hay)
            writer.add(hay[done:at], TEXT)
            writer.add(ids, IGNORED)
            done = at
        writer.add(hay[done:], TEXT)


class _Writer:
    """Collects tokens and their classes."""

    def __init__(self) -> None:
        self.parts: list[tuple[NDArray[np.uint16], int]] = []
        self.length = 0

    def add(self, ids: list[int] | NDArray[np.uint16], kind: int) -> None:
        if len(ids):
            self.parts.append((np.asarray(ids, np.uint16), kind))
            self.length += len(ids)

    def extend(self, other: "_Writer", cuts: list[int], between: list[int]) -> None:
        """Appends another writer's content with `between` put in at each of the `cuts`."""
        tokens, classes = other.arrays(other.length)
        for first, last in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
            if first:
                self.add(between, IGNORED)
            edges = np.flatnonzero(np.diff(classes[first:last])) + first + 1
            for low, high in zip([first, *edges], [*edges, last], strict=True):
                if high > low:
                    self.add(tokens[low:high], int(classes[low]))

    def arrays(self, length: int) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
        """Exactly `length` tokens: what is over is cut, what is missing is padded and ignored."""
        tokens = np.zeros(length, np.uint16)
        classes = np.zeros(length, np.uint8)
        filled = 0
        for ids, kind in self.parts:
            size = min(len(ids), length - filled)
            tokens[filled : filled + size] = ids[:size]
            classes[filled : filled + size] = kind
            filled += size
        return tokens, classes


def _turns(codec: Codec, turns: list[Turn], layout: str) -> list[tuple[list[int], list[int]]]:
    """Each turn as the tokens that ask and the tokens to be answered."""
    if layout == "plain":
        return [
            (codec.encode(f"\n\nQuestion: {ask}\nAnswer:"), codec.encode(f" {reply}\n\n"))
            for ask, reply in turns
        ]
    return [
        (
            [*codec.message("user", codec.encode(ask)), *codec.headers["assistant"]],
            [*codec.encode(reply), codec.end],
        )
        for ask, reply in turns
    ]


def _jumps(rng: Random, length: int) -> NDArray[np.int32]:
    """Non-decreasing offsets with a few jumps, so that short rows show the distances of long ones."""
    extra = rng.randint(0, MAX_POSITION - length)
    cuts = sorted(rng.randrange(1, length) for _ in range(rng.randint(1, 5)))
    shares = np.array([rng.random() for _ in range(len(cuts) + 1)])
    jumps = (shares[:-1] / shares.sum() * extra).astype(np.int32)
    offsets = np.zeros(length, np.int32)
    np.add.at(offsets, cuts, jumps)
    return np.cumsum(offsets, dtype=np.int32)
