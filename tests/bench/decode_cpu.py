"""Decode attention of one layer on the CPU: Tactic beside dense attention, in turns, on fresh queries.

    make bench            # writes tests/bench/results/decode_cpu.json and prints the table

Keys are drawn around topics that stay together in position, as RoPE leaves them; queries look for a few
topics. The floor is what both would take if reading were all: the share of the KV cache that Tactic reads,
of dense's time.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tactic.kernels.decode import decode
from tactic.kernels.dense import dense_decode
from tactic.kernels.estimators import estimator_id
from tactic.kernels.index import DecodeOptions, LayerArena, SegmentTable, units_in
from tactic.kernels.kmeans import kmeans

HEADS, GROUP, DIM, SEGMENT, TOPIC = 2, 3, 64, 8192, 48
SHARPNESS = 1.6  # of the queries: at 128k, one topic holds about 95 % of the attention


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contexts", type=int, nargs="+", default=[8192, 32768, 131072])
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "decode_cpu.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        measure(context, estimator, arguments.threshold, arguments.repeats)
        for context in arguments.contexts
        for estimator in ("guarded", "fit", "centroid")
    ]
    result = {"device": _processor(), "threads": 1, "threshold": arguments.threshold, "rows": rows}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{result['device']}, 1 thread, {HEADS} KV heads, group {GROUP}, d {DIM}, fp32")
    print(f"P = {arguments.threshold}; ratio: dense / tactic; reads: KV cache / what is read of it")
    print(" context estimator     dense    tactic  ratio  reads   read  share reached")
    for row in rows:
        print(
            f"{row['context']:8} {row['estimator']:>9} {row['dense_ms']:6.2f} ms {row['tactic_ms']:6.2f} ms "
            f"{row['ratio']:5.1f}x {1 / row['read_share']:5.1f}x {row['read_share']:6.1%} {row['share']:6.3f}"
        )


def measure(context: int, estimator: str, threshold: float, repeats: int) -> dict[str, Any]:
    """One row of the table: medians over `repeats` fresh queries, the two methods in turns."""
    generator = torch.Generator().manual_seed(context)
    topics = torch.randn(HEADS, context // TOPIC + 1, DIM, generator=generator)
    keys = topics.repeat_interleave(TOPIC, dim=1)[:, :context]
    keys = keys + 0.5 * torch.randn(HEADS, context, DIM, generator=generator)
    pool_k = keys.transpose(0, 1).contiguous()
    pool_v = torch.randn(context, HEADS, DIM, generator=generator)
    arena = LayerArena.create(heads=HEADS, units=units_in(context), head_dim=DIM)
    table = SegmentTable.create(slots=1, segments=context // SEGMENT)
    unit, segments = 0, []
    # The last position is the current token, which no index holds yet.
    for start in range(0, context - 1, SEGMENT):
        part = keys[:, start : min(start + SEGMENT, context - 1)]
        arena.write(unit, kmeans(part, arena.cluster_size))
        segments.append((unit, part.shape[1]))
        unit += units_in(part.shape[1])
    table.write(0, segments)
    options = DecodeOptions.create(1, threshold=threshold, estimator=estimator_id(estimator))
    req_to_token = torch.arange(context, dtype=torch.int32)[None]
    slot, length = torch.tensor([0]), torch.tensor([context])

    def sparse(q: torch.Tensor, *, share: bool = False) -> Any:
        return decode(
            q,
            pool_k,
            pool_v,
            req_to_token,
            slot,
            length,
            table,
            arena,
            options,
            scale=DIM**-0.5,
            measure=share,
        )

    def dense(q: torch.Tensor) -> Any:
        return dense_decode(q, pool_k, pool_v, req_to_token, slot, length, scale=DIM**-0.5)

    times: dict[str, list[float]] = {"dense": [], "tactic": []}
    read, shares = [], []
    for repeat in range(repeats + 2):
        chosen = torch.randint(topics.shape[1], (HEADS, GROUP), generator=generator)
        q = topics[torch.arange(HEADS)[:, None], chosen] + 0.5 * torch.randn(
            HEADS, GROUP, DIM, generator=generator
        )
        q = SHARPNESS * q.reshape(1, HEADS * GROUP, DIM)
        taken = {"dense": _time(dense, q), "tactic": _time(sparse, q)}
        if repeat >= 2:  # the first ones warm up
            for name, value in taken.items():
                times[name].append(value)
            result = sparse(q, share=True)
            read.append(float(result.read.float().mean()) / context)
            shares.append(float(result.share.mean()))
    medians = {name: statistics.median(values) for name, values in times.items()}
    return {
        "context": context,
        "estimator": estimator,
        "dense_ms": medians["dense"],
        "tactic_ms": medians["tactic"],
        "ratio": medians["dense"] / medians["tactic"],
        "read_share": statistics.mean(read),
        "share": statistics.mean(shares),
    }


def _time(function: Callable[[torch.Tensor], Any], q: torch.Tensor) -> float:
    """Milliseconds of one call, after other data has been through the cache."""
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    began = time.perf_counter()
    function(q)
    return 1e3 * (time.perf_counter() - began)


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
