"""What each head reads of a batch, as the kernels leave it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reads:
    """Cuts, counts and lists of what is read.

    A list holds the pool slots of what was selected, without sinks and tail, in runs of clusters.
    Where a KV head reads everything there is none.

    Attributes:
        cuts: `[B, Hq]` int32; a query head selects the clusters of this level and of higher ones.
        selected: `[B, Hq]` int32; positions that each query head asked for.
        lengths: `[B, H]` int32; positions read.
        slots: `[B, H, context]` int32; lists of pool slots.
    """

    cuts: Tensor
    selected: Tensor
    lengths: Tensor
    slots: Tensor

    @classmethod
    def create(
        cls, *, batch: int, query_heads: int, kv_heads: int, context: int, device: torch.device | str
    ) -> "Reads":
        """Room for `batch` requests of at most `context` positions."""

        def int32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        return cls(
            cuts=int32(batch, query_heads),
            selected=int32(batch, query_heads),
            lengths=int32(batch, kv_heads),
            slots=int32(batch, kv_heads, context),
        )
