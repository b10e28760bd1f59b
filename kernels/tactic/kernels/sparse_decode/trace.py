"""What a decode step leaves behind, so that the attention share it reached can be told afterwards."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.estimators import position_logits

_POSITIONS = 1 << 16  # whose keys are held in fp32 at once


@dataclass(frozen=True)
class Trace:
    """Of one layer.

    Attributes:
        queries: `[B, Hq, d]`, any float dtype.
        lse: `[B, Hq]` fp32; log of the weight that each query head read.
    """

    queries: Tensor
    lse: Tensor

    @classmethod
    def create(
        cls,
        batch: int,
        query_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> "Trace":
        """Room for `batch` requests."""
        return cls(
            queries=torch.zeros(batch, query_heads, head_dim, dtype=dtype, device=device),
            lse=torch.zeros(batch, query_heads, dtype=torch.float32, device=device),
        )

    def head(self, batch: int) -> "Trace":
        """The first `batch` requests, in the same memory."""
        return Trace(self.queries[:batch], self.lse[:batch])

    def share(self, row: int, k_pool: Tensor, slot_ids: Tensor, scale: float) -> Tensor:
        """True attention share that a request reached, `[Hq]` fp32; costs a read of all its keys.

        Args:
            row: of the request in the batch.
            k_pool: `[slots, H, d]`.
            slot_ids: `[n]` integer, pool slot of each position of the step.
            scale: of the logits.
        """
        return reached_share(self.queries[row].float() * scale, self.lse[row], k_pool, slot_ids)


def reached_share(query: Tensor, lse: Tensor, k_pool: Tensor, slot_ids: Tensor) -> Tensor:
    """Share of all attention weight that has the log-sum-exp `lse`, `[Hq]` fp32.

    Args:
        query: `[Hq, d]` fp32, scaled.
        lse: `[Hq]` fp32.
        k_pool: `[slots, H, d]`.
        slot_ids: `[n]` integer, of all positions.
    """
    parts = [position_logits(query, k_pool, ids).logsumexp(-1) for ids in torch.split(slot_ids, _POSITIONS)]
    return torch.exp(lse - torch.stack(parts).logsumexp(0)).clamp(max=1)
