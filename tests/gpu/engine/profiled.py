"""Where the time of a decode step goes on the device, told by SGLang's own profiler."""

import gzip
import json
import re
import statistics
import tempfile
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from engines import Engine

STEPS = 24
COUNTED = 12  # graphs, the last but one and those before it
_GRAPH = 32  # kernels that one launch of a graph has at least
_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")


def profiled(engine: Engine, prompts: list[list[int]], tactic: dict[str, Any]) -> dict[str, Any]:
    """Decodes a few tokens of prompts whose prefixes are cached, under the profiler.

    Returns:
        Medians over steps, in µs: `step`, from the start of a CUDA graph to that of the next; `graph`, from
        its first kernel to the end of its last; `between`, kernels and copies outside of graphs; `idle`, when
        nothing ran. `kernels`: by name, µs and calls a step; those that overlap count each for itself.
        `host`: calls of the CUDA runtime that took longest, the same.
    """
    with tempfile.TemporaryDirectory(prefix="tactic-profile-") as folder:
        engine.sglang.start_profile(
            output_dir=folder, activities=["CPU", "GPU"], with_stack=False, record_shapes=False
        )
        engine.generate(prompts, STEPS, tactic)
        engine.sglang.stop_profile()
        (trace,) = Path(folder).glob("*TP-0*.trace.json.gz")
        with gzip.open(trace) as file:
            events = json.load(file)["traceEvents"]
    device = [event for event in events if event.get("cat") in _DEVICE]
    return anatomy(device, [event for event in events if event.get("cat") == "cuda_runtime"])


def anatomy(events: list[dict[str, Any]], calls: list[dict[str, Any]]) -> dict[str, Any]:
    """See `profiled`; events on the device, and calls of the host, as in the profiler's trace."""
    launches: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in events:
        launches[event["args"].get("correlation", -1)].append(event)
    graphs = [some for some in launches.values() if len(some) >= _GRAPH]
    graphs.sort(key=_begin)
    graphs = graphs[-COUNTED - 2 :]
    steps = []
    kernels: dict[str, list[float]] = defaultdict(list)
    host: dict[str, list[float]] = defaultdict(list)
    for graph, following in pairwise(graphs[:-1]):
        begin, end = _begin(graph), _begin(following)
        during = [event for event in events if begin <= event["ts"] < end]
        inside = {id(event) for event in graph}
        steps.append(
            {
                "step": end - begin,
                "graph": max(event["ts"] + event["dur"] for event in graph) - begin,
                "between": sum(event["dur"] for event in during if id(event) not in inside),
                "idle": _idle(during, begin, end),
            }
        )
        for event in during:
            kernels[_short(event["name"])].append(event["dur"])
        for call in calls:
            if begin <= call["ts"] < end:
                host[call["name"]].append(call["dur"])
    medians = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
    count = len(steps)
    return {**medians, "steps": count, "kernels": _table(kernels, count), "host": _table(host, count, 8)}


def _table(times: dict[str, list[float]], steps: int, most: int | None = None) -> dict[str, dict[str, float]]:
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:most]
    return {name: {"us": sum(each) / steps, "calls": len(each) / steps} for name, each in longest}


def _begin(events: list[dict[str, Any]]) -> float:
    return min(float(event["ts"]) for event in events)


def _idle(events: list[dict[str, Any]], begin: float, end: float) -> float:
    """Time in which none of these events runs."""
    idle, covered = 0.0, begin
    for event in sorted(events, key=lambda event: float(event["ts"])):
        idle += max(0.0, event["ts"] - covered)
        covered = max(covered, event["ts"] + event["dur"])
    return idle + max(0.0, end - covered)


def _short(name: str) -> str:
    """A kernel's name without its template arguments and types."""
    return re.sub(r"<.*|\(.*|^void ", "", name)[-60:]
