"""Contexts to look at, made and prefilled one after the other."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from itertools import product
from random import Random
from time import monotonic

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.arguments import load_builder
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.haystack import Haystack


def captures(arguments: Namespace, checkpoint: Checkpoint, deadline: float) -> Iterator[Capture]:
    """Decode steps after contexts of every length, text and seed, until `deadline` (of `monotonic`).

    The steps are those of a right answer, each token given. A capture is valid until the next one is taken.
    """
    builder = load_builder(arguments, checkpoint)
    cases = list(product(arguments.contexts, range(arguments.seeds), arguments.texts))
    for done, (length, seed, text) in enumerate(cases):
        if _late(deadline, done, len(cases)):
            return
        _progress(f"[{done + 1}/{len(cases)}] {length} tokens, {text}, seed {seed}")
        # A prompt of all the positions that the model has would leave none for the answer.
        sample = builder.sample(text, min(length, checkpoint.context_length - arguments.queries), seed, 0)
        given = sample.gold[: arguments.queries - 1]
        context = checkpoint.prefill(sample.prompt, room=len(given))
        yield Capture(text, length, seed, tuple(context.capture(given)))


def continuations(
    arguments: Namespace, checkpoint: Checkpoint, deadline: float
) -> Iterator[tuple[Context, list[int]]]:
    """Prefilled beginnings of book texts and how they go on, by length and seed, until `deadline`."""
    lengths = getattr(arguments, "refresh_contexts", arguments.contexts)
    generated = arguments.generate
    haystack = Haystack.load(arguments.books, checkpoint.tokenizer, tokens=max(lengths) + generated)
    text = haystack.book.tokens
    begin = checkpoint.tokenizer.bos_token_id
    cases = list(product(lengths, range(arguments.seeds)))
    for done, (length, seed) in enumerate(cases):
        if _late(deadline, done, len(cases)):
            return
        _progress(f"[{done + 1}/{len(cases)}] {length} + {generated} tokens of text, seed {seed}")
        if length + generated > checkpoint.context_length:
            raise EvaluationError(
                f"a context of {length} and --generate {generated} exceed the {checkpoint.context_length} "
                "positions of the model; ask for less of either"
            )
        start = Random(f"{seed}/{length}/{generated}").randint(0, len(text) - length - generated)
        tokens = text[start : start + length + generated].tolist()
        if begin is not None:
            tokens[0] = begin
        yield checkpoint.prefill(tokens[:length], room=generated), tokens[length:]


def _late(deadline: float, done: int, total: int) -> bool:
    late = monotonic() > deadline
    if late:
        _progress(f"--seconds is over: {done} of {total} contexts were measured")
    return late


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
