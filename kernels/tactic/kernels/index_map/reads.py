"""What each KV head reads of a batch, as the kernels leave it; the union is taken where it is attended."""

from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32  # clusters in a word of a mask


@dataclass(frozen=True)
class Reads:
    """Counts and lists of what is read.

    A list holds the pool rows of what was selected, without sinks and tail, in an order that may change.

    Attributes:
        masks: `[B, Hq, K_max / 32]` int32; bit i of word w says that a query head selects cluster 32 w + i.
        selected: `[B, Hq]` int32; positions that each query head asked for.
        lengths: `[B, H]` int32; positions read.
        rows: `[B, H, context]` int32; lists of rows `slot_id * H + h`; the first places, as many as there are
            sinks and tail, stay free.
    """

    masks: Tensor
    selected: Tensor
    lengths: Tensor
    rows: Tensor

    @classmethod
    def create(
        cls,
        *,
        batch: int,
        query_heads: int,
        kv_heads: int,
        clusters: int,
        context: int,
        device: torch.device | str,
    ) -> "Reads":
        """Room for `batch` requests of at most `context` positions in at most `clusters` clusters."""

        def int32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.int32, device=device)

        return cls(
            masks=int32(batch, query_heads, -(-clusters // WORD)),
            selected=int32(batch, query_heads),
            lengths=int32(batch, kv_heads),
            rows=int32(batch, kv_heads, context),
        )
