"""The sub-commands of `tactic eval` that answer questions (b) to (g), and `plot`."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

from tactic.kernels.estimators import estimator_id
from tactic.workers.evaluation import plots
from tactic.workers.evaluation.analysis.cluster_size import ClusterSize
from tactic.workers.evaluation.analysis.clusters import ClusterQuality
from tactic.workers.evaluation.analysis.contexts import captures, continuations
from tactic.workers.evaluation.analysis.dense_layers import DenseLayers
from tactic.workers.evaluation.analysis.fit import FitQuality
from tactic.workers.evaluation.analysis.gqa import GroupedQueries
from tactic.workers.evaluation.analysis.question import Answer, CaptureQuestion, ContinuationQuestion
from tactic.workers.evaluation.analysis.refresh import RefreshInterval
from tactic.workers.evaluation.analysis.result import Result, device_name
from tactic.workers.evaluation.analysis.sensitivity import Sensitivity
from tactic.workers.evaluation.arguments import (
    add_contexts,
    add_estimator,
    add_limit,
    add_model,
    add_output,
    given,
    load_checkpoint,
    positive,
    share,
    tokens,
)
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.registry import PERPLEXITY, TASKS

CAPTURED: dict[str, tuple[str, Callable[[Namespace], CaptureQuestion]]] = {
    ClusterSize.name: (
        "quality and cost of clusters of 16, 32 and 64 keys",
        lambda arguments: ClusterSize(arguments.threshold, estimator_id(arguments.estimator)),
    ),
    FitQuality.name: (
        "the fitted curve against the true weights",
        lambda arguments: FitQuality(arguments.threshold),
    ),
    ClusterQuality.name: (
        "k-means in segments, global k-means and positional blocks",
        lambda arguments: ClusterQuality(arguments.threshold),
    ),
    GroupedQueries.name: (
        "selections inside a group of query heads",
        lambda arguments: GroupedQueries(arguments.threshold, estimator_id(arguments.estimator)),
    ),
    Sensitivity.name: (
        "windows, exact prefix, sinks",
        lambda arguments: Sensitivity(arguments.threshold, estimator_id(arguments.estimator)),
    ),
}
"""What captures answer, by sub-command: its summary, and how to begin."""
CONTINUED: dict[str, tuple[str, Callable[[Namespace], ContinuationQuestion]]] = {
    RefreshInterval.name: (
        "how often the index must be refreshed in a long generation",
        lambda arguments: RefreshInterval(arguments.threshold, arguments.estimator, arguments.intervals),
    ),
    DenseLayers.name: (
        "what dense attention in the first layers costs and brings",
        lambda arguments: DenseLayers(arguments.threshold, arguments.estimator),
    ),
}
"""The same of what continuations of a text answer."""
_TEXTS = (PERPLEXITY, "niah_single_2", "niah_multikey_2", "vt")
_INTERVALS = (512, 1024, 2048, 4096)


def register(subparsers: Any) -> None:
    """Adds the sub-commands; each sets `run`, from the parsed arguments to the exit status."""
    for name, (summary, _) in CAPTURED.items():
        parser = subparsers.add_parser(name, help=summary, description=summary)
        _add_common(parser)
        if name not in (FitQuality.name, ClusterQuality.name):
            add_estimator(parser)
        _add_captures(parser)
        parser.set_defaults(run=partial(_run, [name]))
    for name, (summary, _) in CONTINUED.items():
        parser = subparsers.add_parser(name, help=summary, description=summary)
        _add_common(parser)
        add_estimator(parser)
        _add_generation(parser)
        if name == RefreshInterval.name:
            _add_intervals(parser)
        parser.set_defaults(run=partial(_run, [name]))
    names = [*CONTINUED, *CAPTURED]
    summary = f"{', '.join(names)}; each context is prefilled once"
    parser = subparsers.add_parser("all", help=summary, description=summary)
    _add_common(parser)
    add_estimator(parser)
    _add_captures(parser)
    _add_generation(parser)
    _add_intervals(parser)
    parser.add_argument(
        "--continued-contexts",
        type=tokens,
        nargs="+",
        default=[8192],
        metavar="TOKENS",
        help=f"--contexts of {' and '.join(CONTINUED)} [default: 8192]",
    )
    parser.set_defaults(run=partial(_run, names))
    plots.configure(subparsers)


def _add_common(parser: ArgumentParser) -> None:
    add_model(parser)
    add_contexts(parser, contexts=(4096, 16384))
    add_output(parser)
    parser.add_argument("--threshold", type=share, default=0.9, metavar="P", help="[default: 0.9]")
    add_limit(parser)


def _add_captures(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--texts",
        nargs="+",
        choices=(PERPLEXITY, *TASKS),
        default=list(_TEXTS),
        metavar="TASK",
        help=f"tasks that make the contexts and what is decoded after them [default: {' '.join(_TEXTS)}]",
    )
    parser.add_argument(
        "--queries", type=positive, default=32, help="decode steps looked at after a context [default: 32]"
    )


def _add_generation(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--generate", type=tokens, default=8192, metavar="TOKENS", help="length [default: 8192]"
    )


def _add_intervals(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--intervals",
        type=tokens,
        nargs="+",
        default=list(_INTERVALS),
        metavar="STEPS",
        help=f"decode steps between two refreshes [default: {' '.join(map(str, _INTERVALS))}]",
    )


def _run(names: Sequence[str], arguments: Namespace) -> int:
    started = monotonic()
    checkpoint = load_checkpoint(arguments)
    continued = [CONTINUED[name][1](arguments) for name in names if name in CONTINUED]
    captured = [CAPTURED[name][1](arguments) for name in names if name in CAPTURED]
    if continued:
        with _written(continued, arguments, checkpoint):
            for context, continuation in continuations(arguments, checkpoint, started):
                for asked in continued:
                    asked.add(context, continuation)
    if captured:
        with _written(captured, arguments, checkpoint):
            for capture in captures(arguments, checkpoint, started):
                for question in captured:
                    question.add(capture)
    return 0


@contextmanager
def _written(answers: Sequence[Answer], arguments: Namespace, checkpoint: Checkpoint) -> Iterator[None]:
    """Writes the answers in the end, also when interrupted: then with what there is."""
    started = monotonic()
    try:
        yield
    finally:
        seconds = monotonic() - started
        for answer in answers:
            tables = answer.tables()
            if tables[0].rows:
                device = device_name(checkpoint.device)
                result = Result(answer.name, given(arguments), tables, device, seconds, answer.data())
                print(result.write(arguments.out).with_suffix(".md").read_text())
