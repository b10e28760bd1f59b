"""What each KV head reads of a batch, as the kernels leave it; the union is taken where it is attended."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reads:
    """Counts and lists of what is read.

    A list holds the pool rows of what was selected, without sinks and tail, in an order that may change.

    Attributes:
        lengths: `[B, H]` int32; positions read.
        selected: `[B, Hq]` int32; positions that each query head asked for.
        rows: `[B, H, context]` int32; lists of rows `slot_id * H + h`.
        arrived: `[B, H]` int32; programs that have attended to their part.
    """

    lengths: Tensor
    selected: Tensor
    rows: Tensor
    arrived: Tensor

    @classmethod
    def create(
        cls, *, batch: int, query_heads: int, kv_heads: int, context: int, device: torch.device | str
    ) -> "Reads":
        """Room for `batch` requests of at most `context` positions."""

        def int32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        return cls(
            lengths=int32(batch, kv_heads),
            selected=int32(batch, query_heads),
            rows=int32(batch, kv_heads, context),
            arrived=int32(batch, kv_heads),
        )
