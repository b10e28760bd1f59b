"""`calibrate`: the settings that read least and still answer as dense attention does, for one checkpoint."""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass

from tactic.kernels.estimators import NAMES, Exact
from tactic.workers.evaluation.accuracy import measure
from tactic.workers.evaluation.analysis.interval import Interval
from tactic.workers.evaluation.analysis.result import Result, Row, Table, device_name
from tactic.workers.evaluation.arguments import (
    add_cluster_size,
    add_contexts,
    add_limit,
    add_model,
    new_file,
    share,
)
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.model import pick_device
from tactic.workers.evaluation.outcome import Outcome, Plan
from tactic.workers.evaluation.tables import comparisons
from tactic.workers.evaluation.tasks.registry import PERPLEXITY

TASKS = ("niah_single_2", "niah_multikey_1", "niah_multivalue", "vt", "qa_2", PERPLEXITY)
THRESHOLDS = (0.7, 0.8, 0.9, 0.95, 0.98)
ESTIMATORS = tuple(name for name in NAMES if name != Exact.name)
_NO_TIME = "--seconds: there was no time for a question and a text; give it more"


@dataclass(frozen=True)
class Candidate:
    """Settings, and what they cost and save, over all contexts.

    Attributes:
        estimator: name.
        threshold: P.
        lost: points of accuracy below dense.
        nats: loss per token of text above dense.
        read: share of the positions that KV heads read.
    """

    estimator: str
    threshold: float
    lost: Interval
    nats: Interval
    read: float


def configure(parser: ArgumentParser) -> None:
    """Adds the arguments."""
    add_model(parser)
    add_contexts(parser, contexts=(4096, 16384))
    parser.add_argument(
        "--out", type=new_file, required=True, metavar="FILE", help="TOML file for `tactic --config FILE up`"
    )
    parser.add_argument(
        "--max-lost",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="most accuracy that may be lost against dense, in points of 100 [default: 0.5]",
    )
    parser.add_argument(
        "--max-nats",
        type=float,
        default=0.03,
        metavar="NATS",
        help="most that the loss per token of text may rise: 0.03 is 3 %% of perplexity [default: 0.03]",
    )
    parser.add_argument(
        "--thresholds", type=share, nargs="+", default=list(THRESHOLDS), metavar="P", help="to choose from"
    )
    parser.add_argument(
        "--estimators", nargs="+", choices=ESTIMATORS, default=list(ESTIMATORS), help="to choose from"
    )
    add_cluster_size(parser)
    add_limit(parser)
    parser.set_defaults(tasks=list(TASKS))


def run(arguments: Namespace) -> int:
    """Runs the sub-command; returns the exit status."""
    started = time.monotonic()
    methods = [f"tactic:{name}" for name in arguments.estimators]
    index = BuildIndex(cluster_size=arguments.cluster_size)
    plan = Plan(methods, sorted(arguments.thresholds), index=index, measured=False)
    outcomes = [each for found in measure(arguments, plan, started=started) for each in found]
    found = candidates(outcomes)
    best = choose(found, arguments.max_lost, arguments.max_nats)
    print(_report(arguments, found, time.monotonic() - started).as_markdown())
    arguments.out.write_text(_toml(arguments, outcomes, best))
    if best is None:
        print("tactic eval: nothing tried is within the bounds; P = 1 is written", file=sys.stderr)
    print(f"{arguments.out} is written; start with: tactic --config {arguments.out} up", file=sys.stderr)
    return 0


def candidates(outcomes: Sequence[Outcome]) -> list[Candidate]:
    """What each estimator at each threshold costs and saves.

    Raises:
        EvaluationError: there are no questions or no texts among the outcomes.
    """
    if not outcomes:
        raise EvaluationError(_NO_TIME)
    found = []
    for (method, threshold), compared in comparisons(outcomes).items():
        if threshold is None:
            continue
        if compared.lost is None or compared.nats is None:
            raise EvaluationError(_NO_TIME)
        estimator = method.partition(":")[2]
        found.append(Candidate(estimator, threshold, compared.lost, compared.nats, compared.read))
    return found


def choose(found: Sequence[Candidate], max_lost: float, max_nats: float) -> Candidate | None:
    """The candidate that reads least within the bounds; None if none is.

    An estimator's thresholds are gone through from above, up to the first that is out of bounds: one below
    it that is within them again is so by chance.
    """
    within: list[Candidate] = []
    for estimator in dict.fromkeys(each.estimator for each in found):
        own = [each for each in found if each.estimator == estimator]
        for each in sorted(own, key=lambda candidate: -candidate.threshold):
            if each.lost.mean > max_lost or each.nats.mean > max_nats:
                break
            within.append(each)
    return min(within, key=lambda candidate: candidate.read, default=None)


def _toml(arguments: Namespace, outcomes: Sequence[Outcome], best: Candidate | None) -> str:
    """The file. JSON strings and numbers are TOML ones, too."""
    contexts = ", ".join(f"{context:,}" for context in sorted({each.context for each in outcomes}))
    seeds = len({each.seed for each in outcomes})
    bounds = f"at most {arguments.max_lost:g} points of accuracy and {arguments.max_nats:g} nats a token"
    why = (
        f"# Chosen by `tactic eval calibrate` at contexts of {contexts} tokens, {seeds} seeds.\n"
        f"# Allowed to be lost against dense attention: {bounds}.\n"
    )
    if best is None:
        why += "# Nothing that was tried kept within it.\n"
    else:
        why += (
            f"# Measured: {best.lost.mean:.2f} points, {best.nats.mean:.4f} nats; "
            f"KV heads read {best.read:.1%} of the positions.\n"
        )
    index = {
        "threshold": best.threshold if best else 1.0,
        "estimator": best.estimator if best else ESTIMATORS[0],
        "cluster_size": arguments.cluster_size,
        "sinks": arguments.sinks,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in index.items()]
    model = json.dumps(str(arguments.model.resolve()))
    return "\n".join([f"{why}[engine]", f"model_path = {model}", "", "[index]", *lines, ""])


def _report(arguments: Namespace, found: Sequence[Candidate], seconds: float) -> Result:
    rows: list[Row] = [
        {
            "estimator": each.estimator,
            "P": each.threshold,
            "lost, points": each.lost,
            "loss above dense, nats": each.nats,
            "read %": 100 * each.read,
        }
        for each in sorted(found, key=lambda candidate: candidate.estimator)
    ]
    given = {name: getattr(arguments, name) for name in ("contexts", "seeds", "max_lost", "max_nats")}
    note = "What was tried. ± is half of a 95 % interval over contexts within tasks (Student's t)."
    device = device_name(pick_device(arguments.device))
    return Result("calibrate", given, [Table("Candidates", note, rows)], device, seconds)
