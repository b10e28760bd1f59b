"""Times decoding in SGLang on a GPU: the tactic backend beside dense FlashInfer, on one checkpoint or shape.

    python tests/gpu/engine/measure.py --model llama-3.1-8b --context 120000 --batches 1 3 --out engine.json

A shape gets random weights. Left as SGLang draws them, attention is uniform and everything must be read, so
embeddings, norms, queries and keys are replaced by structured ones (`structured.py`), calibrated so that an
oracle needs about 900 tokens a head; `--weights plain` leaves them. The result says which, and what was read.
A second turn follows on the first prompt: what of it is clustered, and what is found in the index.

`--skip-attention` prefills without attention (`skip_attention.py`), where prefill would take longer than all
else: `--model qwen2.5-7b --context 1000000 --batches 1 --skip-attention`, on a GPU with 141 GB.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from calibrated import Calibrated
from engines import SHAPES, Engine, device_name, prepare_environment, random_prompt
from profiled import profiled
from skip_attention import attention_skipped
from timing import decoded, quantiles, reads, step_times

from tactic.workers.config import IndexConfig
from tactic.workers.refresh.messages import RequestReport

Prompt = Callable[[int], list[int]]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-3.1-8b", help=f"directory, or one of {', '.join(SHAPES)}")
    parser.add_argument("--weights", choices=["structured", "plain"], default="structured")
    parser.add_argument("--context", type=int, default=120_000, help="prompt tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--steps", type=int, default=100, help="tokens timed per request")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--estimator", default=IndexConfig().estimator)
    parser.add_argument("--backends", nargs="+", default=["flashinfer", "tactic"])
    parser.add_argument("--skip-attention", action="store_true", help="prefill without attention")
    parser.add_argument("--profile", action="store_true", help="tell a step's time by kernel, too")
    parser.add_argument("--turn", type=int, default=2048, help="new tokens of a second turn")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    prepare_environment()
    results: dict[str, Any] = {
        "device": device_name(),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
    }
    weights, prompt, about = _source(arguments)
    for backend in arguments.backends:
        with attention_skipped() if arguments.skip_attention else nullcontext():
            results[backend] = measure(backend, arguments, weights, prompt) | {"weights": about}
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    table = _table(results, arguments)
    arguments.out.with_suffix(".md").write_text(table)
    print(table)


def measure(
    backend: str, arguments: argparse.Namespace, weights: Calibrated | None, prompt: Prompt
) -> dict[str, Any]:
    """Runs one engine and returns its times and reads."""
    started = time.monotonic()
    with Engine(
        arguments.model,
        backend,
        index=IndexConfig(estimator=arguments.estimator),
        cuda_graph_max_bs_decode=max(arguments.batches),
        max_running_requests=max(*arguments.batches, 4),
        context_length=arguments.context + arguments.turn + 4096,
        log_level="info",
    ) as engine:
        result: dict[str, Any] = {"start_s": time.monotonic() - started}
        print(f"{backend}: engine up after {result['start_s']:.0f} s", flush=True)
        if weights is not None:
            weights.load(engine)
        tactic = {"threshold": arguments.threshold}
        for batch in arguments.batches:
            prompts = [prompt(seed) for seed in range(batch)]
            engine.messages()
            # Prefilled first and alone, so that the requests of the batch decode together.
            prefills = []
            for each in prompts:
                began = time.monotonic()
                engine.generate([each], 1, tactic)
                prefills.append(time.monotonic() - began)
            times = step_times(engine, prompts, arguments.steps, tactic)
            result[f"batch_{batch}"] = {
                # Of the prompt that no batch before had.
                "prefill_s": prefills[-1],
                **quantiles(times),
                **reads(decoded(engine, batch)),
            }
            if arguments.profile:
                result[f"batch_{batch}"]["profile"] = profiled(engine, prompts, tactic)
            print(backend, batch, result[f"batch_{batch}"], flush=True)
        result["second_turn"] = _second_turn(engine, prompt, arguments, tactic)
        print(backend, result["second_turn"], flush=True)
    return result


def _second_turn(
    engine: Engine, prompt: Prompt, arguments: argparse.Namespace, tactic: dict[str, Any]
) -> dict[str, Any]:
    """Goes on after the first prompt, which is cached."""
    first = prompt(0)
    engine.messages()
    began = time.monotonic()
    engine.generate([first + prompt(1)[: arguments.turn]], 2, tactic)
    took = time.monotonic() - began
    reports = [message for message in engine.messages(1.0) if isinstance(message, RequestReport)]
    return {"new_tokens": arguments.turn, "seconds": took} | {
        name: sum(getattr(report, name) for report in reports)
        for name in ("tokens_clustered", "tokens_index_reused")
        if reports
    }


def _source(arguments: argparse.Namespace) -> tuple[Calibrated | None, Prompt, dict[str, Any]]:
    """Weights to be loaded, if any; prompts by seed, and what is to be said of the weights."""
    length = arguments.context
    if arguments.model in SHAPES and arguments.weights == "structured":
        weights = Calibrated.create(arguments.model, length)
        return weights, weights.prompt, weights.about
    kind = "a checkpoint's" if arguments.model not in SHAPES else "random, as SGLang draws them"
    return None, lambda seed: random_prompt(length, seed), {"kind": kind}


def _table(results: dict[str, Any], arguments: argparse.Namespace) -> str:
    weights = next(results[backend]["weights"] for backend in arguments.backends)
    about = f"weights {weights['kind']}"
    if "oracle_tokens" in weights:
        about += f" (an oracle needs {weights['oracle_tokens']:.0f} tokens a head)"
    lines = [
        f"{results['device']}, SGLang, {arguments.model}, {arguments.context:,} tokens, P = "
        f"{arguments.threshold}, {about}.",
        "",
        "| batch | backend | ms a step: median | p99 | prefill s | read | dense / this |",
        "|---|---|---|---|---|---|---|",
    ]
    for batch in arguments.batches:
        dense = results.get("flashinfer", {}).get(f"batch_{batch}")
        for backend in arguments.backends:
            row = results[backend][f"batch_{batch}"]
            read = f"{row['read_share']:.1%}" if "read_share" in row else "all"
            ratio = f"{dense['ms_per_step_median'] / row['ms_per_step_median']:.2f}" if dense else ""
            lines.append(
                f"| {batch} | {backend} | {row['ms_per_step_median']:.2f} | {row['ms_per_step_p99']:.2f} "
                f"| {row['prefill_s']:.2f} | {read} | {ratio} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
