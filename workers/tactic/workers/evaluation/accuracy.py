"""`accuracy`: what Tactic and others answer right, and what they read (arXiv 2502.12216, section 5)."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from tactic.kernels.estimators import NAMES
from tactic.workers.evaluation.analysis.result import Result, device_name
from tactic.workers.evaluation.arguments import (
    Question,
    add_cluster_size,
    add_contexts,
    add_limit,
    add_model,
    add_output,
    given,
    load_builder,
    load_checkpoint,
    positive,
    questions,
    share,
)
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.methods.registry import BUDGETED, SERVED
from tactic.workers.evaluation.methods.registry import METHODS as KNOWN
from tactic.workers.evaluation.model import pick_device
from tactic.workers.evaluation.outcome import Outcome, Plan
from tactic.workers.evaluation.progress import Progress
from tactic.workers.evaluation.records import as_record, load_earlier
from tactic.workers.evaluation.tables import all_tables
from tactic.workers.evaluation.tasks.registry import PERPLEXITY, TASKS

# What is served stands first, so that budgets are matched to it.
_ESTIMATORS = (SERVED, *(name for name in NAMES if name != SERVED))
DEFAULT = (
    "oracle",
    *(f"tactic:{name}" for name in _ESTIMATORS),
    f"tactic-positional:{SERVED}",
    *BUDGETED,
)
QUESTION = "accuracy"
SAVE_EVERY_S = 30.0


def configure(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_contexts(parser, contexts=(4096, 16384))
    add_output(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=[*TASKS, PERPLEXITY],
        default=[*TASKS, PERPLEXITY],
        metavar="TASK",
        help=f"some of {', '.join(TASKS)}, {PERPLEXITY} [default: all]",
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT),
        metavar="METHOD",
        help=f"beside dense, some of {', '.join(KNOWN)} [default: {' '.join(DEFAULT)}]",
    )
    parser.add_argument(
        "--thresholds", type=share, nargs="+", default=[0.9], metavar="P", help="[default: 0.9]"
    )
    parser.add_argument(
        "--budget",
        type=positive,
        metavar="TOKENS",
        help="positions per KV head for quest, window and topk [default: what the first tactic method reads]",
    )
    add_cluster_size(parser)
    add_limit(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on from what --out holds of a run that was cut short"
    )


def run(arguments: Namespace) -> int:
    """Runs the sub-command; returns the exit status."""
    started = time.monotonic()
    plan = Plan(
        arguments.methods,
        arguments.thresholds,
        arguments.budget,
        BuildIndex(cluster_size=arguments.cluster_size),
    )
    plan.check()
    earlier = load_earlier(arguments.out / f"{QUESTION}.json", arguments) if arguments.resume else None
    outcomes = list(earlier.outcomes) if earlier else []
    saved = started

    def save() -> Path:
        seconds = time.monotonic() - started
        device = device_name(pick_device(arguments.device))
        if earlier:
            seconds, device = seconds + earlier.seconds, earlier.device_with(device)
        result = Result(
            question=QUESTION,
            arguments=given(arguments),
            tables=all_tables(outcomes),
            device=device,
            seconds=seconds,
            data=as_record(outcomes, arguments.model),
        )
        return result.write(arguments.out)

    try:
        for found in measure(arguments, plan, started=started, done=_samples(outcomes)):
            outcomes += found
            if time.monotonic() - saved > SAVE_EVERY_S:
                save()
                saved = time.monotonic()
    finally:
        if outcomes:
            print(save().with_suffix(".md").read_text())
    return 0


def measure(
    arguments: Namespace, plan: Plan, *, started: float, done: Container[Question] = ()
) -> Iterator[list[Outcome]]:
    """Yields each sample's outcomes, without those that are done."""
    checkpoint = load_checkpoint(arguments)
    builder = load_builder(arguments, checkpoint)
    todo = [each for each in questions(arguments) if each not in done]
    progress = Progress(len(todo), started=started, limit=arguments.seconds)
    for seed, context, task in todo:
        if not progress.begin(context, f"{task} at {context:,} tokens"):
            return
        sample = builder.sample(task, context, seed, 0)
        yield list(plan.run(checkpoint, sample, context=context, seed=seed))
        progress.end()


def _samples(outcomes: Iterable[Outcome]) -> set[Question]:
    return {(each.seed, each.context, each.task) for each in outcomes}
