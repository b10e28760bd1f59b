"""`engine`: the same tasks through the real engine, dense beside Tactic."""

from __future__ import annotations

import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import AutoTokenizer

from tactic.workers.evaluation.analysis.result import Result, Row, Table, device_name
from tactic.workers.evaluation.arguments import (
    add_cluster_size,
    add_contexts,
    add_estimator,
    add_limit,
    add_model,
    add_output,
    given,
    make_builder,
    questions,
    share,
)
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.methods.plain import Dense
from tactic.workers.evaluation.model import pick_device
from tactic.workers.evaluation.progress import Progress
from tactic.workers.evaluation.ratio import ratio_interval
from tactic.workers.evaluation.tasks.registry import TASKS
from tactic.workers.sglang.checks import UnsupportedError, check_checkpoint

DENSE = Dense.name
ALL = "all"


def configure(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_contexts(parser, contexts=(4096, 16384))
    add_output(parser)
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=list(TASKS),
        default=list(TASKS),
        metavar="TASK",
        help=f"some of {', '.join(TASKS)} [default: all]",
    )
    parser.add_argument(
        "--thresholds",
        type=share,
        nargs="+",
        default=[1.0, 0.9],
        metavar="P",
        help="beside dense; 1 reads everything through the index [default: 1 0.9]",
    )
    add_estimator(parser)
    add_cluster_size(parser)
    add_limit(parser)


@dataclass(frozen=True)
class Reply:
    """The engine's answer to one sample.

    Attributes:
        task: name.
        context: length asked for, in tokens.
        seed: of the sample.
        mode: "dense" or the threshold.
        score: 0 … 1.
        tokens: generated ids.
        read: share of the positions that KV heads read, mean over decode steps and layers.
        text: decoded.
    """

    task: str
    context: int
    seed: int
    mode: str
    score: float
    tokens: list[int]
    read: float
    text: str


def run(arguments: Namespace) -> int:
    """Runs the sub-command; returns the exit status."""
    started = time.monotonic()
    replies: list[Reply] = []
    try:
        for found in _measure(arguments, started):
            replies += found
    finally:
        if replies:
            result = _result(arguments, replies, time.monotonic() - started)
            print(result.write(arguments.out).with_suffix(".md").read_text())
    return 0


def _measure(arguments: Namespace, started: float) -> Iterator[list[Reply]]:
    try:
        config = check_checkpoint(str(arguments.model))
    except UnsupportedError as error:
        raise EvaluationError(str(error).replace("engine.model_path", "--model")) from error
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    builder = make_builder(arguments, tokenizer, int(config["max_position_embeddings"]))
    stop = [tokenizer.eos_token_id]
    modes: dict[str, dict[str, Any]] = {DENSE: {"mode": "dense"}}
    for threshold in arguments.thresholds:
        modes[f"P = {threshold:g}"] = {"threshold": threshold, "estimator": arguments.estimator}
    todo = questions(arguments)
    from tactic.workers.evaluation.local_engine import local_engine  # other commands need no SGLang

    with local_engine(arguments) as engine:
        progress = Progress(len(todo), started=started, limit=arguments.seconds)
        for seed, context, task in todo:
            if not progress.begin(context, f"{task} at {context:,} tokens"):
                return
            sample = builder.sample(task, context, seed, 0)
            assert sample.episode is not None
            found = []
            for mode, options in modes.items():
                tokens, read = engine.answer(sample, stop, options)
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                score = sample.episode.score(text)
                found.append(Reply(task, context, seed, mode, score, tokens, read, text))
            yield found
            progress.end()


def _result(arguments: Namespace, replies: Sequence[Reply], seconds: float) -> Result:
    return Result(
        question="engine",
        arguments=given(arguments),
        tables=tables(replies),
        device=device_name(pick_device(arguments.device)),
        seconds=seconds,
        data={"replies": [asdict(each) for each in replies]},
    )


def tables(replies: Sequence[Reply]) -> list[Table]:
    """Accuracy by context and over all of them, then by task."""
    dense = {(each.context, each.task, each.seed): each for each in replies if each.mode == DENSE}
    by_context: dict[tuple[int | str, str], list[Reply]] = {}
    by_task: dict[tuple[str, str], list[Reply]] = {}
    for each in sorted(replies, key=lambda reply: reply.context):
        by_context.setdefault((each.context, each.mode), []).append(each)
        by_task.setdefault((each.task, each.mode), []).append(each)
    several = len({each.context for each in replies}) > 1
    for each in replies if several else ():
        by_context.setdefault((ALL, each.mode), []).append(each)
    return [
        Table(
            "Through the engine",
            "SGLang with the tactic backend; an answer's first token comes from the dense prefill. P = 1 "
            "reads everything through the index. Accuracy as RULER scores; ± is half of a 95 % interval over "
            "questions within tasks and contexts (Student's t); losses are those of the same questions.",
            [
                {"context": context, "mode": mode, **_row(group, dense)}
                for (context, mode), group in by_context.items()
            ],
        ),
        Table(
            "By task",
            "The same, over all contexts.",
            [{"task": task, "mode": mode, **_row(group, dense)} for (task, mode), group in by_task.items()],
        ),
    ]


def _row(group: Sequence[Reply], dense: dict[tuple[int, str, int], Reply]) -> Row:
    pairs = [(each, dense[each.context, each.task, each.seed]) for each in group]
    strata, ones = [(each.task, each.context) for each in group], [1.0] * len(group)
    lost = [100 * (other.score - each.score) for each, other in pairs]
    return {
        "accuracy %": ratio_interval([100 * each.score for each in group], ones, strata),
        "lost against dense, points": ratio_interval(lost, ones, strata),
        "worse": sum(each > 0 for each in lost),
        "better": sum(each < 0 for each in lost),
        "same tokens as dense %": 100 * sum(a.tokens == b.tokens for a, b in pairs) / len(pairs),
        "read %": 100 * sum(each.read for each in group) / len(group),
        "asked": len(group),
    }
