"""From an episode to a prompt of a given length in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.tasks.episode import Episode, Style
from tactic.workers.evaluation.tasks.haystack import Haystack, Source
from tactic.workers.evaluation.tasks.registry import PERPLEXITY, TASKS

_CONTEXT = "[[[CONTEXT]]]"
_LEAST_ROOM = 256
ANSWER_MARGIN = 16
"""Tokens that an answer may take beyond a right one."""
CONTINUED = 128
"""Tokens whose loss the perplexity task measures."""


@dataclass(frozen=True)
class Sample:
    """A prompt with what is expected of it.

    Attributes:
        task: name.
        prompt: ids.
        gold: ids of a right answer; for perplexity the text's own next tokens.
        limit: most tokens to generate.
        episode: scores the answer; None for perplexity.
    """

    task: str
    prompt: list[int]
    gold: list[int]
    limit: int
    episode: Episode | None


@dataclass(frozen=True)
class PromptBuilder:
    """Builds samples; one depends on its arguments alone.

    Attributes:
        tokenizer: of transformers.
        haystack: what contexts are made of.
        style: wording and layout.
    """

    tokenizer: Any
    haystack: Haystack
    style: Style

    def sample(self, task: str, length: int, seed: int, number: int) -> Sample:
        """The `number`-th sample of a task; prompt and answer take `length` tokens, or a few less.

        Raises:
            EvaluationError: the task is unknown, or its sentences do not fit the length.
        """
        rng = Random(f"{seed}/{task}/{length}/{number}")
        if task == PERPLEXITY:
            return self._text(rng, length)
        if task not in TASKS:
            raise EvaluationError(f"--tasks {task} is unknown, use some of {', '.join(TASKS)}, {PERPLEXITY}")
        episode = TASKS[task](rng, self.haystack.words, self.style)
        before, after = (self._encode(part) for part in self._layout(episode))
        gold = self._encode(episode.gold)
        limit = len(gold) + ANSWER_MARGIN
        room = length - len(before) - len(after) - limit
        if room < _LEAST_ROOM:
            raise EvaluationError(
                f"--contexts {length} is too short for {task}: it leaves {room} tokens of text"
            )
        context = self._context(episode, rng, room)
        return Sample(task, [*before, *context, *after], gold, limit, episode)

    def _text(self, rng: Random, length: int) -> Sample:
        begin = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        tokens, size = self.haystack.book.tokens, length - len(begin)
        start = rng.randint(0, len(tokens) - size)
        text = tokens[start : start + size].tolist()
        return Sample(PERPLEXITY, begin + text[:-CONTINUED], text[-CONTINUED:], CONTINUED, None)

    def _layout(self, episode: Episode) -> tuple[str, str]:
        """What stands before and after the context."""
        if self.style == "ruler":
            messages = [{"role": "user", "content": f"{episode.intro}{_CONTEXT}\n{episode.question}"}]
            plain = f"{episode.intro}{_CONTEXT}\n{episode.question} "
        else:
            messages = [
                {"role": "system", "content": _CONTEXT},
                {"role": "user", "content": episode.question},
            ]
            plain = f"{_CONTEXT}\n\nQuestion: {episode.question}\nAnswer:"
        if self.tokenizer.chat_template:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        else:
            text = (self.tokenizer.bos_token or "") + plain
        before, _, after = text.partition(_CONTEXT)
        return before, after + episode.prefix

    def _context(self, episode: Episode, rng: Random, room: int) -> list[int]:
        if callable(episode.fill):
            return self._compose(episode, rng.getrandbits(64), room)
        planted = [self._encode(f" {sentence}") for sentence in episode.planted]
        length = room - sum(map(len, planted))
        if length < 0:
            raise EvaluationError(f"--contexts: the planted sentences need {-length} tokens more")
        whole = self.haystack.book if episode.fill == "book" else self.haystack.noise
        start = rng.randint(0, len(whole.tokens) - length)
        return _plant(whole.cut(start, length), planted, rng)

    def _compose(self, episode: Episode, seed: int, room: int) -> list[int]:
        """As many items as fit, or nearly: their number is scaled to the room, then lowered until they do."""
        assert callable(episode.fill)
        count, shrink = 64, 0
        while True:
            ids = self._encode(episode.separator.join(episode.fill(Random(seed), count)))
            if len(ids) <= room and shrink:
                return ids
            scaled = int(0.995 * count * room / len(ids)) - shrink
            if scaled < len(episode.planted):
                raise EvaluationError(f"--contexts: {room} tokens of text are too few for this task")
            count, shrink = scaled, shrink + 1

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        return ids


def _plant(source: Source, planted: Sequence[list[int]], rng: Random) -> list[int]:
    """Puts sentences at random depths, in their order, before sentences of the text."""
    places = source.places if len(source.places) else np.array([0])
    depths = sorted(rng.random() for _ in planted)
    chosen: NDArray[np.int64] = places[[int(depth * len(places)) for depth in depths]]
    result: list[int] = []
    done = 0
    for place, ids in zip(chosen.tolist(), planted, strict=True):
        result += source.tokens[done:place].tolist() + ids
        done = place
    return [*result, *source.tokens[done:].tolist()]
