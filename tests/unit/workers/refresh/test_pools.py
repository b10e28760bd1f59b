"""Pools of an engine's process, mapped by another."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest
import torch

from tactic.workers.index.memory import IndexShape
from tactic.workers.refresh.pools import Mappings, SharedPools, share_pools
from tactic.workers.sharing.handles import CudaHandle, NotSharedError

SHAPE = IndexShape(layers=2, kv_heads=3, head_dim=8, cluster_size=16)
ENGINE = """
import sys, msgspec, torch
from tactic.workers.index.memory import IndexShape
from tactic.workers.refresh.pools import share_pools
from tactic.workers.sharing import memory
keys = [memory.zeros((10, 3, 8), torch.float32).fill_(layer + 1) for layer in range(2)]
arena = IndexShape(2, 3, 8, 16).arena(4, "cpu")
print(msgspec.json.encode(share_pools(keys, arena)).decode(), flush=True)
sys.stdin.readline()
print(int(arena.sizes[:, 5].sum()), flush=True)
sys.stdin.readline()
"""


@dataclass
class Engine:
    """A process with pools that it shares."""

    process: "subprocess.Popen[str]"
    pools: SharedPools

    def sizes_at_5(self) -> int:
        """Sum over the heads of the index, as the process itself sees it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture
def engine() -> Iterator[Engine]:
    command = [sys.executable, "-c", ENGINE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Engine(process, msgspec.json.decode(process.stdout.readline(), type=SharedPools))
        process.kill()


def test_another_process_reads_keys_and_writes_clusters(engine: Engine) -> None:
    mappings = Mappings(torch.device("cpu"))
    mapped = mappings.open(engine.pools)
    assert [float(keys.mean()) for keys in mapped.keys] == [1, 2]
    assert [tuple(arena.sizes.shape) for arena in mapped.arenas] == [(3, 4 * 32)] * 2
    mapped.arenas[1].sizes[:, 5] = 7
    assert mappings.open(engine.pools) is mapped
    assert engine.sizes_at_5() == 3 * 7


def test_mappings_end_with_the_engine(engine: Engine) -> None:
    mappings = Mappings(torch.device("cpu"))
    mappings.open(engine.pools)
    engine.process.kill()
    for _ in range(6000):
        if not len(mappings):
            break
        time.sleep(0.01)
    assert len(mappings) == 0
    engine.process.wait()
    with pytest.raises(NotSharedError, match="can't be mapped"):
        mappings.open(engine.pools)


def test_what_lies_elsewhere_is_not_mapped() -> None:
    arena = SHAPE.arena(1, "cpu")
    keys = list(SHAPE.arena(1, "cpu").tensors)[:2]
    pools = share_pools(keys, arena)
    assert not pools.on_gpu
    with pytest.raises(NotSharedError, match="another host"):
        Mappings(torch.device("cpu")).open(msgspec.structs.replace(pools, host="another"))
    there = msgspec.structs.replace(pools, keys=(CudaHandle("GPU-0", b""),))
    assert there.on_gpu
    with pytest.raises(NotSharedError, match="on a GPU"):
        Mappings(torch.device("cpu")).open(there)
    if not torch.cuda.is_available():
        with pytest.raises(NotSharedError, match="GPU GPU-0 is not visible"):
            Mappings(None).open(there)
