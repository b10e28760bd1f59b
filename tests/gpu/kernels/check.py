"""Checks every kernel against its definition over random scenes. Exit code 1 if any case differs.

    python tests/gpu/kernels/check.py --cases 600 --out check.json

Kernels compile for a shape, which takes longer than a case runs: each shape gets a process of its own, that
runs all its cases. Without a GPU, TRITON_INTERPRET=1 runs the shapes that the interpreter can.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from cases import MismatchError, Tally, check_chain, check_kmeans, check_quest, make_runner
from scenes import Shape

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
SHAPES = [
    Shape(8, 4, 128, 32, BF16, 3),  # Llama 3.1 8B
    Shape(2, 3, 64, 32, BF16, 4),  # the reference model
    Shape(8, 4, 128, 32, BF16, 2, kv_dtype=FP8),
    Shape(8, 4, 128, 32, BF16, 1, fit=True),
    Shape(8, 1, 128, 32, BF16, 2),
    Shape(4, 2, 64, 16, BF16, 4),
    Shape(2, 3, 128, 64, BF16, 5),
    Shape(4, 4, 64, 32, BF16, 7, kv_dtype=FP8),
    Shape(2, 5, 128, 32, BF16, 4),
    Shape(1, 6, 64, 32, BF16, 6),
    Shape(4, 7, 128, 16, BF16, 2),
    Shape(4, 8, 128, 64, BF16, 3),
    Shape(2, 8, 64, 16, BF16, 1, kv_dtype=FP8),
    Shape(8, 4, 128, 16, FP16, 4),
    Shape(2, 3, 64, 64, FP16, 8),
    Shape(2, 8, 128, 32, FP16, 3, fit=True),
    Shape(4, 1, 64, 32, FP32, 4),
    Shape(2, 3, 64, 32, FP32, 4, fit=True),
    Shape(8, 4, 128, 32, FP32, 2),
    Shape(1, 5, 48, 16, FP32, 3),
]
KINDS = ("chain", "kmeans", "chain", "quest", "chain")


@dataclass
class Result:
    """Of one shape."""

    shape: str
    cases: int = 0
    seconds: float = 0.0
    compile_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)


def run_shape(number: int, cases: int, seed: int, kmeans_tokens: int) -> Result:
    """All cases of one shape; the first of each kind compiles."""
    torch.set_num_threads(1)
    shape = SHAPES[number]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = Result(str(shape))
    began = time.perf_counter()
    runner = make_runner(shape, device)
    for case in range(cases):
        kind = KINDS[case % len(KINDS)]
        own = seed * 1_000_000 + number * 10_000 + case
        started = time.perf_counter()
        try:
            if kind == "chain":
                check_chain(shape, runner, own, device, result.tally)
            elif kind == "kmeans":
                check_kmeans(shape, own, device, kmeans_tokens)
            else:
                check_quest(shape, own, device)
        except MismatchError as difference:
            result.failures.append(f"{kind}, seed {own}: {difference}")
        except Exception:  # a kernel that fails is a finding, too: the other shapes go on
            result.failures.append(f"{kind}, seed {own}: {traceback.format_exc()}")
        result.cases += 1
        if case < len(KINDS):
            result.compile_s += time.perf_counter() - started
    result.seconds = time.perf_counter() - began
    return result


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=600, help="in all, shared out evenly")
    parser.add_argument("--kmeans-tokens", type=int, default=2000, help="most positions of a k-means case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", type=int, nargs="+", help=f"some of 0 … {len(SHAPES) - 1}")
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), help="0: in this process")
    parser.add_argument("--out", type=Path, help="JSON of the result")
    arguments = parser.parse_args()
    numbers = arguments.shapes or [
        number for number, shape in enumerate(SHAPES) if torch.cuda.is_available() or _interpretable(shape)
    ]
    each = -(-arguments.cases // len(numbers))
    settings = each, arguments.seed, arguments.kmeans_tokens
    began = time.perf_counter()
    results = []
    if arguments.jobs:
        # A kernel that breaks its CUDA context takes only its own shape along.
        with ProcessPoolExecutor(
            arguments.jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1
        ) as pool:
            for done in as_completed([pool.submit(run_shape, number, *settings) for number in numbers]):
                results.append(done.result())
                _report(results[-1], began)
    else:
        for number in numbers:
            results.append(run_shape(number, *settings))
            _report(results[-1], began)
    failures = sum(len(result.failures) for result in results)
    pairs, ties, heads = (sum(getattr(r.tally, name) for r in results) for name in ("pairs", "ties", "heads"))
    summary = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "Triton's interpreter",
        "cases": sum(result.cases for result in results),
        "failures": failures,
        "seconds": time.perf_counter() - began,
        "pairs": pairs,
        "ties": ties,
        "share_gap_mean": sum(result.tally.share_gaps for result in results) / max(1, heads),
        "share_gap_max": max(result.tally.share_gap for result in results),
    }
    print(", ".join(f"{name} {value}" for name, value in summary.items()))
    if arguments.out:
        arguments.out.write_text(
            json.dumps({**summary, "shapes": [asdict(result) for result in results]}, indent=1) + "\n"
        )
    return 1 if failures else 0


def _report(result: Result, began: float) -> None:
    print(
        f"[{time.perf_counter() - began:4.0f} s] {result.shape}: {result.cases} cases, "
        f"{len(result.failures)} failures, {result.seconds:.0f} s ({result.compile_s:.0f} s with compiling)",
        flush=True,
    )
    for failure in result.failures[:5]:
        print(f"    {failure}", flush=True)


def _interpretable(shape: Shape) -> bool:
    """Triton's interpreter multiplies no bf16 matrices and knows no fp8."""
    return shape.dtype != BF16 and shape.kv_dtype is None


if __name__ == "__main__":
    sys.exit(main())
