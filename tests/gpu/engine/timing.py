"""How long decode steps take in an engine, and what they read."""

import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from engines import Engine, greedy

from tactic.workers.refresh.messages import RequestReport

WARM_UP = 20
"""Tokens whose times are not counted: until then the batch is not complete."""


def step_times(engine: Engine, prompts: list[list[int]], steps: int, tactic: dict[str, Any]) -> list[float]:
    """Milliseconds between tokens of the last request to start, prefixes being cached."""
    stamps: dict[int, list[tuple[float, int]]] = {}
    outputs = engine.sglang.generate(
        input_ids=prompts, sampling_params=greedy(steps + WARM_UP, tactic), stream=True
    )
    for output in outputs:
        count = len(output["output_ids"])
        stamps.setdefault(output.get("index", 0), []).append((time.monotonic(), count))
    last = max(stamps.values(), key=lambda stamps: stamps[0])
    return gaps(last)[-steps:]


def gaps(stamps: Sequence[tuple[float, int]]) -> list[float]:
    """Milliseconds of each token, from when how many came; those that came together took as long each."""
    times = []
    for (before, _), (now, count) in pairwise(stamps):
        times += [1e3 * (now - before) / count] * count
    return times


def quantiles(times: Sequence[float]) -> dict[str, float]:
    """Median and p99 of step times in ms."""
    return {
        "ms_per_step_median": statistics.median(times),
        "ms_per_step_p99": p99(times),
        "steps": len(times),
    }


def p99(values: Sequence[float]) -> float:
    """Of values in any order."""
    return sorted(values)[int(len(values) * 0.99)]


def decoded(engine: Engine, batch: int) -> list[RequestReport]:
    """Reports of the requests of a batch that has decoded, by one rank; none from a dense backend."""
    reports = [
        message
        for message in engine.messages(1.0)
        if isinstance(message, RequestReport) and message.decode_steps > 1
    ]
    return [report for report in reports if report.rank == reports[0].rank][-batch:]


def reads(reports: Sequence[RequestReport]) -> dict[str, Any]:
    """Shares of the positions that were read by requests that decoded; empty from a dense backend."""
    if not reports:
        return {}
    shares = [share for report in reports for share in report.read_share_per_layer]
    return {
        "read_share": statistics.mean(shares),
        "read_share_of_layers": [min(shares), max(shares)],
        "dense_steps": sum(report.dense_steps for report in reports),
    }
