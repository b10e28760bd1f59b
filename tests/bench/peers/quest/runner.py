"""Quest on a GPU: fixed shapes, no host sync, fit for CUDA graphs."""

from dataclasses import dataclass

import torch
import triton
from peers.quest.attend import attend, merge
from peers.quest.naive import PAGE, Pages
from peers.quest.select import BINS, BLOCK, bound, list_rows, refine, weigh
from torch import Tensor

_MOST_SPLITS = 64
_WAVES = 2  # programs of `attend` per multiprocessor


@dataclass(frozen=True)
class QuestRunner:
    """Buffers for B requests of one context length, shared by all layers.

    Attributes:
        budget: pages that each KV head reads, or all where there are not so many.
        splits: programs that share a KV head's rows.
        bounds: `[B, Hq, P]` fp32; upper bounds of the logits, base 2.
        sums: `[B, Hq, tiles]` fp32; log-sum-exp of the bounds of each tile of pages, base 2.
        keys: `[B, H, P]` int32; importance, as the bits of a positive float: ordered alike.
        histograms: `[B, H, 2, 2048]` int32; of the first and, in the cut's bin, the next 11 bits of `keys`.
        counters: `[B, H, 2]` int32; pages listed above the cut and at it.
        rows: `[B, H, budget * 16]` int32; pool rows `slot_id * H + h`; -1 beyond the request's end.
        partial: `[B, Hq, splits, d]` fp32.
        partial_lse: `[B, Hq, splits]` fp32.
    """

    budget: int
    splits: int
    bounds: Tensor
    sums: Tensor
    keys: Tensor
    histograms: Tensor
    counters: Tensor
    rows: Tensor
    partial: Tensor
    partial_lse: Tensor

    @classmethod
    def create(
        cls,
        *,
        batch: int,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
        context: int,
        budget: int,
        device: torch.device | str,
        processors: int = 132,
    ) -> "QuestRunner":
        """Allocates for `batch` requests of at most `context` positions; `budget` in pages, at least 2."""
        if budget < 2:
            raise ValueError(f"budget={budget} must be at least 2: the first page and the last are read")
        pages = triton.cdiv(context, PAGE)
        splits = max(1, min(_MOST_SPLITS, _WAVES * processors // (batch * kv_heads)))

        def fp32(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=torch.float32, device=device)

        def int32(*shape: int) -> Tensor:
            return torch.zeros(batch, *shape, dtype=torch.int32, device=device)

        return cls(
            budget=budget,
            splits=splits,
            bounds=fp32(query_heads, pages),
            sums=fp32(query_heads, triton.cdiv(pages, BLOCK)),
            keys=int32(kv_heads, pages),
            histograms=int32(kv_heads, 2, BINS),
            counters=int32(kv_heads, 2),
            rows=int32(kv_heads, budget * PAGE),
            partial=fp32(query_heads, splits, head_dim),
            partial_lse=fp32(query_heads, splits),
        )

    def select(
        self,
        q: Tensor,
        req_to_token: Tensor,
        request_slots: Tensor,
        seq_lens: Tensor,
        pages: Pages,
        scale: float,
    ) -> None:
        """Lists the rows of each KV head's best pages.

        Args:
            q: `[B, Hq, d]`, contiguous.
            req_to_token: `[R, max_context]` int32.
            request_slots: `[B]` int32.
            seq_lens: `[B]` int32, at least 1.
            pages: of this layer.
            scale: of the logits.
        """
        bound(self.bounds, self.sums, self.histograms, self.counters, q, seq_lens, pages, scale)
        weigh(self.keys, self.histograms, self.bounds, self.sums, seq_lens)
        refine(self.histograms, self.keys, seq_lens, self.budget)
        list_rows(
            self.rows,
            self.counters,
            self.histograms,
            self.keys,
            req_to_token,
            request_slots,
            seq_lens,
            self.budget,
        )

    def run(
        self,
        q: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        req_to_token: Tensor,
        request_slots: Tensor,
        seq_lens: Tensor,
        pages: Pages,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Attention of one layer: output as q, log-sum-exp `[B, Hq]` fp32. Arguments as for `select`."""
        self.select(q, req_to_token, request_slots, seq_lens, pages, scale)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        attend(self.partial, self.partial_lse, self.rows, q, k_pool, v_pool, seq_lens, scale)
        merge(out, lse, self.partial, self.partial_lse)
        return out, lse
