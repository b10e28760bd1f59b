"""A KV pool whose keys other processes can read."""

from __future__ import annotations

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from tactic.workers.sharing import memory


class SharedKeyPool(MHATokenToKVPool):  # type: ignore[misc]  # SGLang is untyped
    """SGLang's MHA pool of the CPU, with its keys in memory that clustering actors map."""

    k_buffer: list[torch.Tensor]

    def _create_buffers_normal(self) -> None:
        super()._create_buffers_normal()
        # Before anything holds a view. What this replaces was never touched, so it took no memory.
        self.k_buffer = [memory.zeros(tuple(keys.shape), keys.dtype) for keys in self.k_buffer]
