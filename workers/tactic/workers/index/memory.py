"""How much memory the index takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tactic.kernels.index import UNIT_TOKENS, LayerArena, SegmentTable
from tactic.workers.sharing import memory

SLACK = 1.25
"""Room for segments that do not fill their units, and for refreshes, which hold the old and the new index."""


@dataclass(frozen=True)
class IndexShape:
    """Dimensions that decide the size of the index of one tensor-parallel rank.

    Attributes:
        layers: attention layers.
        kv_heads: KV heads of this rank.
        head_dim: elements of a key.
        cluster_size: average members of a cluster.
    """

    layers: int
    kv_heads: int
    head_dim: int
    cluster_size: int

    def arena(self, units: int, device: torch.device | str) -> LayerArena:
        """One arena for all layers, whose heads are L * H; on the CPU in memory that others can map."""
        arena = self._create(units, device)
        if torch.device(device).type != "cpu":
            return arena
        shared = (memory.zeros(tuple(tensor.shape), tensor.dtype) for tensor in arena.tensors)
        return LayerArena(arena.cluster_size, *shared)

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit in all layers."""
        return self._create(1, "meta").bytes_per_unit

    def _create(self, units: int, device: torch.device | str) -> LayerArena:
        return LayerArena.create(
            heads=self.layers * self.kv_heads,
            units=units,
            head_dim=self.head_dim,
            cluster_size=self.cluster_size,
            device=device,
        )

    def bytes_per_token(self, kv_token_bytes: int, share: float) -> float:
        """Index memory to set aside for each token of the KV pool.

        Args:
            kv_token_bytes: bytes of the keys and values of one token in all layers.
            share: part of the KV cache's bytes that the index may take; 0 takes what indexes every token.
        """
        return share * kv_token_bytes if share else SLACK * self.unit_bytes / UNIT_TOKENS

    def units(self, kv_tokens: int, kv_token_bytes: int, share: float) -> int:
        """Units of each arena beside a KV pool of `kv_tokens` tokens; see `bytes_per_token`."""
        return int(kv_tokens * self.bytes_per_token(kv_token_bytes, share) / self.unit_bytes) + 1


def split_layers(arena: LayerArena, layers: int) -> list[LayerArena]:
    """One arena for each layer, in the memory of an arena of all layers."""
    parts = [tensor.view(layers, -1, *tensor.shape[1:]).unbind() for tensor in arena.tensors]
    return [LayerArena(arena.cluster_size, *part) for part in zip(*parts, strict=True)]


def make_table(rows: int, context_length: int, segment_size: int, device: torch.device | str) -> SegmentTable:
    """A table whose rows hold the whole context cut twice as fine as whole segments, and some turns more."""
    segments = 2 * -(-context_length // segment_size) + 32
    return SegmentTable.create(slots=rows, segments=segments, device=device)
