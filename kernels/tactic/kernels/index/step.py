"""What the layers of one decode step share: whose index is read, and where its clusters lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index.units import clusters_in

BLOCK = 16
"""Clusters that are scored at once: neighbours in the arena, of one segment."""


@dataclass(frozen=True)
class StepPlan:
    """Device arrays of B requests, filled once a step by `plan_step` and read by every layer.

    A request that reads everything has no clusters and no clustered positions: all of it is tail.

    Attributes:
        slots: `[B]` int32; request slot.
        seq_lens: `[B]` int32; positions.
        clusters: `[B]` int32; clusters of the request.
        clustered: `[B]` int32; positions in them.
        threshold: `[B]` fp32.
        estimator: `[B]` int32; id.
        begins: `[B, K_max]` int32; first position of each cluster's segment.
        blocks: `[B]` int32; blocks of at most `BLOCK` clusters.
        block_rows: `[B, N_max]` int32; a block's first row in the arena.
        block_firsts: `[B, N_max]` int32; its first cluster among those of the request.
        block_sizes: `[B, N_max]` int32; its clusters.
        block_bases: `[B, N_max]` int32; where its segment's members begin in the arena.
        block_begins: `[B, N_max]` int32; first position of its segment.
    """

    slots: Tensor
    seq_lens: Tensor
    clusters: Tensor
    clustered: Tensor
    threshold: Tensor
    estimator: Tensor
    begins: Tensor
    blocks: Tensor
    block_rows: Tensor
    block_firsts: Tensor
    block_sizes: Tensor
    block_bases: Tensor
    block_begins: Tensor

    @classmethod
    def create(
        cls, *, batch: int, segments: int, context: int, cluster_size: int, device: torch.device | str
    ) -> "StepPlan":
        """Room for `batch` requests of at most `context` positions in at most `segments` segments."""
        most = clusters_in(context, cluster_size) + segments  # every segment may round up
        blocks = most // BLOCK + segments

        def int32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        return cls(
            slots=int32(batch),
            seq_lens=int32(batch),
            clusters=int32(batch),
            clustered=int32(batch),
            threshold=torch.ones(batch, dtype=torch.float32, device=device),
            estimator=int32(batch),
            begins=int32(batch, most),
            blocks=int32(batch),
            block_rows=int32(batch, blocks),
            block_firsts=int32(batch, blocks),
            block_sizes=int32(batch, blocks),
            block_bases=int32(batch, blocks),
            block_begins=int32(batch, blocks),
        )
