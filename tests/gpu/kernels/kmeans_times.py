"""Times k-means over 1, 16 and 128 segments of a layer with 8 KV heads, and each of its launches.

    python tests/gpu/kernels/kmeans_times.py

The device is kept busy while the host queues the launches, as a prefill does.
"""

import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from workload import QUEUED, SEGMENT

from tactic.kernels.kmeans import kmeans_pool

HEADS, DIM, CLUSTER = 8, 128, 32
REPEATS = 11


def main() -> None:
    """Entry point."""
    generator = torch.Generator("cuda").manual_seed(0)
    print(f"{torch.cuda.get_device_name()}: {HEADS} KV heads, d {DIM}, bf16, c = {CLUSTER}")
    for segments in (1, 16, 128):
        positions = segments * SEGMENT
        pool = torch.randn(positions, HEADS, DIM, generator=generator, device="cuda", dtype=torch.bfloat16)
        ids = torch.randperm(positions, generator=generator, device="cuda", dtype=torch.int32)
        ids = ids.view(segments, SEGMENT)
        kmeans_pool(pool, ids, CLUSTER)  # compiles
        times = [_milliseconds(pool, ids) for _ in range(REPEATS)]
        print(f"{segments} x {SEGMENT} positions: {statistics.median(times):.3f} ms")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            kmeans_pool(pool, ids, CLUSTER)
            torch.cuda.synchronize()
        launches = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
        for event in launches[:8]:
            print(f"  {event.self_device_time_total:8.1f} us in {event.count} of {event.key[:40]}")


def _milliseconds(pool: torch.Tensor, ids: torch.Tensor) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(QUEUED)
    begin.record()
    kmeans_pool(pool, ids, CLUSTER)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


if __name__ == "__main__":
    main()
