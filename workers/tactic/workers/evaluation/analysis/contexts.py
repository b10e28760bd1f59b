"""Contexts to look at, made and prefilled one after the other."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from itertools import product
from random import Random

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.arguments import load_builder
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.progress import Progress
from tactic.workers.evaluation.tasks.haystack import Haystack

LEAST_CONTEXT = 1024


def captures(arguments: Namespace, checkpoint: Checkpoint, started: float) -> Iterator[Capture]:
    """Decode steps after contexts of every seed, length and text, while there is time.

    The steps are those of a right answer, each token given. A capture is valid until the next one is taken.

    Args:
        arguments: contexts, seeds, texts, queries, seconds and those of `load_builder`.
        checkpoint: whose keys and queries they are.
        started: `time.monotonic()` when the run began.

    Raises:
        EvaluationError: a context is too short to have an index.
    """
    if min(arguments.contexts) < LEAST_CONTEXT:
        raise EvaluationError(
            f"--contexts {min(arguments.contexts)} is too short to be clustered, "
            f"ask for {LEAST_CONTEXT} or more"
        )
    builder = load_builder(arguments, checkpoint)
    cases = list(product(range(arguments.seeds), arguments.contexts, arguments.texts))
    progress = Progress(len(cases), started=started, limit=arguments.seconds)
    for seed, length, text in cases:
        if not progress.begin(length, f"{text} at {length:,} tokens"):
            return
        sample = builder.sample(text, length, seed, 0)
        given = sample.gold[: arguments.queries - 1]
        context = checkpoint.prefill(sample.prompt, room=len(given))
        yield Capture(text, length, seed, tuple(context.capture(given)))
        progress.end()


def continuations(
    arguments: Namespace, checkpoint: Checkpoint, started: float
) -> Iterator[tuple[Context, list[int]]]:
    """Prefilled beginnings of book texts and how they go on, of every seed and length, while there is time.

    Args:
        arguments: contexts (or continued_contexts, where both are there), seeds, generate, seconds, books.
        checkpoint: that reads them.
        started: `time.monotonic()` when the run began.

    Raises:
        EvaluationError: context and generation exceed the model's positions.
    """
    lengths = getattr(arguments, "continued_contexts", arguments.contexts)
    generated = arguments.generate
    if max(lengths) + generated > checkpoint.context_length:
        raise EvaluationError(
            f"a context of {max(lengths):,} tokens and --generate {generated:,} exceed the "
            f"{checkpoint.context_length:,} positions of the model; ask for less of either"
        )
    haystack = Haystack.load(arguments.books, checkpoint.tokenizer, tokens=max(lengths) + generated)
    text, begin = haystack.book.tokens, checkpoint.tokenizer.bos_token_id
    cases = list(product(range(arguments.seeds), lengths))
    progress = Progress(len(cases), started=started, limit=arguments.seconds)
    for seed, length in cases:
        if not progress.begin(length, f"{length:,} + {generated:,} tokens of text"):
            return
        start = Random(f"{seed}/{length}/{generated}").randint(0, len(text) - length - generated)
        tokens = text[start : start + length + generated].tolist()
        if begin is not None:
            tokens[0] = begin
        yield checkpoint.prefill(tokens[:length], room=generated), tokens[length:]
        progress.end()
