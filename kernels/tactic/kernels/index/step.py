"""What the layers of one decode step share: whose index is read, and where its clusters lie."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index.units import clusters_in


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
        rows: `[B, K_max]` int32; each cluster's row in the arena.
        bases: `[B, K_max]` int32; where its segment's members begin in the arena.
        begins: `[B, K_max]` int32; first position of its segment.
    """

    slots: Tensor
    seq_lens: Tensor
    clusters: Tensor
    clustered: Tensor
    threshold: Tensor
    estimator: Tensor
    rows: Tensor
    bases: Tensor
    begins: Tensor

    @classmethod
    def create(
        cls, *, batch: int, segments: int, context: int, cluster_size: int, device: torch.device | str
    ) -> "StepPlan":
        """Room for `batch` requests of at most `context` positions in at most `segments` segments."""
        most = clusters_in(context, cluster_size) + segments  # every segment may round up

        def int32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        return cls(
            slots=int32(batch),
            seq_lens=int32(batch),
            clusters=int32(batch),
            clustered=int32(batch),
            threshold=torch.ones(batch, dtype=torch.float32, device=device),
            estimator=int32(batch),
            rows=int32(batch, most),
            bases=int32(batch, most),
            begins=int32(batch, most),
        )
