"""The pools of an engine's rank that clustering actors read and write in place."""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch

from tactic.kernels.index import LayerArena
from tactic.workers.index.memory import split_layers
from tactic.workers.sharing.handles import (
    CudaHandle,
    Handle,
    NotSharedError,
    attach,
    device_uuid,
    export,
)
from tactic.workers.sharing.host import host_identity
from tactic.workers.sharing.process import when_ended

logger = logging.getLogger(__name__)


class SharedPools(msgspec.Struct, frozen=True):
    """Where a rank's keys and index lie, for processes of its host.

    Attributes:
        name: unique, so that what was mapped from a process before is not taken for this.
        host: `host_identity` of the exporting process.
        pid: of the exporting process.
        cluster_size: average members of a cluster.
        keys: of each layer, [slots, H, d].
        index: the arrays of an arena of all layers, [L * H, …].
    """

    name: str
    host: str
    pid: int
    cluster_size: int
    keys: tuple[Handle, ...]
    index: tuple[Handle, ...]

    @property
    def on_gpu(self) -> bool:
        """Whether they lie in GPU memory."""
        return isinstance(self.keys[0], CudaHandle)


@dataclass(frozen=True)
class MappedPools:
    """A rank's keys and index, in the memory of the rank's own process.

    Attributes:
        keys: of each layer, [slots, H, d].
        arenas: of each layer.
        remote: they lie on another GPU than the one that reaches them.
    """

    keys: list[torch.Tensor]
    arenas: list[LayerArena]
    remote: bool


def share_pools(keys: Sequence[torch.Tensor], arena: LayerArena) -> SharedPools:
    """Exports this process's pools, which must live as long as it does.

    Args:
        keys: of each layer, [slots, H, d].
        arena: of all layers, whose heads are L * H.

    Raises:
        NotSharedError: some memory can't be mapped by others.
    """
    return SharedPools(
        name=str(uuid.uuid4()),
        host=host_identity(),
        pid=os.getpid(),
        cluster_size=arena.cluster_size,
        keys=tuple(export(layer) for layer in keys),
        index=tuple(export(tensor) for tensor in arena.tensors),
    )


class Mappings:
    """Pools of other processes that this one has mapped: each once, until the other ends.

    Args:
        device: from which memory is to be reached: the CPU, which reaches no GPU's, or a GPU; None takes the
            device on which it lies.
    """

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._mapped: dict[str, MappedPools] = {}

    def __len__(self) -> int:
        return len(self._mapped)

    def open(self, pools: SharedPools) -> MappedPools:
        """The pools, mapped now or before.

        Raises:
            NotSharedError: they can't be mapped here.
        """
        with self._lock:
            mapped = self._mapped.get(pools.name)
            if mapped is None:
                mapped = self._mapped[pools.name] = self._map(pools)
            return mapped

    def _map(self, pools: SharedPools) -> MappedPools:
        if pools.host != host_identity():
            raise NotSharedError("the engine runs on another host, or in another container")
        if pools.on_gpu and self._device is not None and self._device.type == "cpu":
            raise NotSharedError("the engine's memory is on a GPU, and the clustering actor is not")
        keys, index = (
            [attach(handle, pools.pid, self._device) for handle in handles]
            for handles in (pools.keys, pools.index)
        )
        arena = LayerArena(pools.cluster_size, *index)
        mapped = MappedPools(keys, split_layers(arena, len(keys)), self._is_remote(pools.keys[0]))
        try:
            # Memory that is mapped stays taken when its process has ended, and the next one may need it.
            when_ended(pools.pid, lambda: self._drop(pools))
        except ProcessLookupError as error:
            raise NotSharedError(f"process {pools.pid} has ended") from error
        size = sum(tensor.nbytes for tensor in (*keys, *index))
        where = " on another GPU" if mapped.remote else ""
        logger.info("mapped %.2f GB of process %d%s", size / 1e9, pools.pid, where)
        return mapped

    def _is_remote(self, handle: Handle) -> bool:
        if self._device is None or not isinstance(handle, CudaHandle):
            return False
        return handle.device != device_uuid(self._device)

    def _drop(self, pools: SharedPools) -> None:
        with self._lock:
            self._mapped.pop(pools.name, None)
        logger.info("process %d has ended; its memory is mapped no more", pools.pid)
