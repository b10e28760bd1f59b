"""Whether another process can work in this one's GPU memory: a job in place, checked and timed.

    python tests/gpu/refresh/ipc.py [--layers 32 --heads 8 --dim 128 --slots 65536]

Runs on the CPU, too, where there is no GPU.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from apparatus import Actor

from tactic.workers.config import RefreshConfig
from tactic.workers.index.memory import IndexShape, split_layers
from tactic.workers.refresh.messages import Piece, RefreshJob
from tactic.workers.refresh.pools import share_pools
from tactic.workers.refresh.verify import faults
from tactic.workers.sharing import memory

POSITIONS = 4096
CLUSTER = 32


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, size in (("layers", 32), ("heads", 8), ("dim", 128), ("slots", 65536)):
        parser.add_argument(f"--{name}", type=int, default=size)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = IndexShape(arguments.layers, arguments.heads, arguments.dim, CLUSTER)
    keys = [pool((arguments.slots, arguments.heads, arguments.dim), device) for _ in range(shape.layers)]
    arena = shape.arena(2 * POSITIONS // 512, device)
    pools = share_pools(keys, arena)
    slots = torch.randperm(arguments.slots, dtype=torch.int32)[:POSITIONS]
    piece = Piece(0, POSITIONS, unit=POSITIONS // 512)
    job = RefreshJob(1, 0, "", (piece,), CLUSTER, 1, 0, slots.numpy().tobytes(), pools)
    config = RefreshConfig(placement="colocated" if device == "cuda" else "cpu", mps_percentage=0, duty=1.0)
    with Actor(config) as actor:
        for number in range(3):
            began = time.monotonic()
            _, worked = actor.work(job)
            print(f"job {number}: {time.monotonic() - began:.3f} s, of which work {worked:.3f} s", flush=True)
    assert not faults(arena.read(piece.unit, POSITIONS)).any()
    for layer, part in zip(keys, split_layers(arena, shape.layers), strict=True):
        clusters = part.read(piece.unit, POSITIONS)
        own = layer[slots.to(device, torch.int64)].float().transpose(0, 1)
        for head in range(shape.kv_heads):
            members = own[head][clusters.members[head].long()].split(clusters.sizes[head].tolist())
            means = torch.stack([group.mean(0) for group in members])
            torch.testing.assert_close(means, clusters.centroids[head].float(), atol=0.02, rtol=0.02)
    print(f"{shape.layers} layers clustered in place by another process: partitions, and means of their keys")


def pool(shape: tuple[int, ...], device: str) -> torch.Tensor:
    """Keys as an engine keeps them."""
    if device == "cpu":
        return memory.zeros(shape, torch.bfloat16).normal_()
    return torch.randn(shape, dtype=torch.bfloat16, device=device)


if __name__ == "__main__":
    main()
