"""The `tactic` attention backend: dense prefill by another backend, sparse decode by ours."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.mem_cache.memory_pool import KVWriteLoc

from tactic.workers.sglang.runtime import TacticRuntime


class TacticAttentionBackend(AttentionBackend):  # type: ignore[misc]  # SGLang is untyped
    """Prefill goes to `dense`, then new keys are clustered; decode reads what the index selects.

    Args:
        dense: a complete SGLang backend for the same runner.
        runtime: index and counters.
    """

    def __init__(self, dense: AttentionBackend, runtime: TacticRuntime) -> None:
        super().__init__()
        self.dense = dense
        self.runtime = runtime
        self.needs_cpu_seq_lens = dense.needs_cpu_seq_lens

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Eager entry point."""
        if forward_batch.forward_mode.is_decode() and not self.runtime.all_dense:
            self.runtime.begin_decode(forward_batch.req_pool_indices, forward_batch.seq_lens)
        else:
            self.dense.init_forward_metadata(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Before a decode graph is captured or replayed: nothing that the graph reads lies on the host."""
        self.runtime.replay(len(forward_batch.req_pool_indices))
        if in_capture:
            # Allocates this batch size's buffers and compiles, which a graph can't hold.
            self.runtime.begin_decode(forward_batch.req_pool_indices, forward_batch.seq_lens)

    def init_forward_metadata_in_graph(self, forward_batch: Any) -> None:
        """Inside a decode graph."""
        self.runtime.begin_decode(forward_batch.req_pool_indices, forward_batch.seq_lens)

    def init_cuda_graph_state(self, max_bs: int, max_num_tokens: int) -> None:
        """Buffers that captured graphs refer to are made per batch size, at its capture."""

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Sequence length of padded requests, whose row of the segment table is empty."""
        return 1

    def support_triton(self) -> bool:
        """As the dense backend."""
        return bool(self.dense.support_triton())

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Dense attention of new tokens; then the segments that they complete are clustered in this layer."""
        out: torch.Tensor = self.dense.forward_extend(q, k, v, layer, forward_batch, save_kv_cache, **kwargs)
        self.runtime.build(layer.layer_id)
        return out

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: Any,
        forward_batch: Any,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of one new token per request: q [B, Hq * d] → [B, Hq * d]."""
        if self.runtime.all_dense:
            dense: torch.Tensor = self.dense.forward_decode(
                q, k, v, layer, forward_batch, save_kv_cache, **kwargs
            )
            return dense
        pool = self.runtime.pool
        if save_kv_cache:
            pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        q = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        out = self.runtime.attention.layer(layer.layer_id, q, layer.scaling)
        return out.reshape(len(out), -1)


def make_dense_backend(runner: Any) -> AttentionBackend:
    """The backend that runs prefill and dense requests: FlashInfer on GPUs, plain torch elsewhere."""
    if torch.device(runner.device).type == "cuda":
        return ATTENTION_BACKENDS["flashinfer"](runner)
    from tactic.workers.sglang.native_dense import NativeDenseBackend

    return NativeDenseBackend(runner)
