"""`accuracy`: what Tactic and others answer right, and what they read (arXiv 2502.12216, section 5)."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from tactic.kernels.estimators import NAMES
from tactic.workers.evaluation.analysis.result import Result, device_name
from tactic.workers.evaluation.arguments import (
    add_contexts,
    add_model,
    add_output,
    load_builder,
    load_checkpoint,
    positive,
    share,
)
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.methods.registry import BUDGETED, SERVED
from tactic.workers.evaluation.methods.registry import METHODS as KNOWN
from tactic.workers.evaluation.model import pick_device
from tactic.workers.evaluation.outcome import Outcome, Plan
from tactic.workers.evaluation.progress import Progress
from tactic.workers.evaluation.tables import all_tables, head_figures
from tactic.workers.evaluation.tasks.registry import PERPLEXITY, TASKS

# What is served stands first, so that budgets are matched to it.
_ESTIMATORS = (SERVED, *(name for name in NAMES if name != SERVED))
DEFAULT = (
    "oracle",
    *(f"tactic:{name}" for name in _ESTIMATORS),
    f"tactic-positional:{SERVED}",
    *BUDGETED,
)
SAVE_EVERY_S = 30.0


def configure(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_contexts(parser, contexts=(4096, 16384))
    add_output(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
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
        "--samples", type=positive, default=1, help="of each task, context and seed [default: 1]"
    )
    parser.add_argument(
        "--budget",
        type=positive,
        metavar="TOKENS",
        help="positions per KV head for quest, window and topk [default: what the first tactic method reads]",
    )
    parser.add_argument(
        "--cluster-size", type=int, choices=[16, 32, 64], default=32, help="keys a cluster [default: 32]"
    )
    parser.add_argument(
        "--seconds", type=positive, help="stop in time for this, keep what there is [default: no limit]"
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
    outcomes: list[Outcome] = []
    saved = started

    def save() -> Path:
        return _result(arguments, outcomes, time.monotonic() - started).write(arguments.out)

    try:
        for found in measure(arguments, plan, started=started):
            outcomes += found
            if time.monotonic() - saved > SAVE_EVERY_S:
                save()
                saved = time.monotonic()
    finally:
        if outcomes:
            print(save().with_suffix(".md").read_text())
    return 0


def measure(arguments: Namespace, plan: Plan, *, started: float) -> Iterator[list[Outcome]]:
    """Yields each sample's outcomes, one round of all tasks and contexts after the other, seeds first."""
    checkpoint = load_checkpoint(arguments)
    builder = load_builder(arguments, checkpoint)
    rounds = [(seed, number) for number in range(arguments.samples) for seed in range(arguments.seeds)]
    todo = [(r, context, task) for r in rounds for context in arguments.contexts for task in arguments.tasks]
    progress = Progress(len(todo), started=started, limit=arguments.seconds)
    for (seed, number), context, task in todo:
        if not progress.begin(context, f"{task} at {context:,} tokens"):
            return
        # Samples of a seed are told apart by their seed alone: what pairs a method with dense.
        own_seed = seed + number * arguments.seeds
        sample = builder.sample(task, context, own_seed, 0)
        yield list(plan.run(checkpoint, sample, context=context, seed=own_seed))
        progress.end()


def _result(arguments: Namespace, outcomes: list[Outcome], seconds: float) -> Result:
    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "command")}
    return Result(
        question="accuracy",
        arguments={name: str(value) if isinstance(value, Path) else value for name, value in given.items()},
        tables=all_tables(outcomes),
        device=device_name(pick_device(arguments.device)),
        seconds=seconds,
        data={"heads": head_figures(outcomes), "outcomes": [_plain(each) for each in outcomes]},
    )


def _plain(outcome: Outcome) -> dict[str, object]:
    """An outcome without the figures of heads, whose means `data.heads` has."""
    plain = asdict(outcome)
    plain |= {name: value for name, value in plain.pop("figures").items() if name != "heads"}
    return {name: round(x, 5) if isinstance(x, float) else x for name, x in plain.items()}
