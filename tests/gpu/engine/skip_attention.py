"""Prefill without attention: keys and values are written, and the attention's output is zero.

A million tokens are then prefilled in the time of their matrix products. With the structured weights of
`tests/gpu/engine/structured.py`, whose attention adds little to what the next layer sees, keys stay nearly
what they are; what a decode step costs depends on their arrangement, not on what they mean. SGLang loads this
as a plug-in in the processes that are started inside `attention_skipped`.
"""

from contextlib import AbstractContextManager
from typing import Any

import torch
from plugins import plugged_in

BACKENDS = (
    "flashinfer_backend.FlashInferAttnBackend.forward_extend",
    "torch_native_backend.TorchNativeAttnBackend.forward_extend",
)


def attention_skipped() -> AbstractContextManager[None]:
    """Engines that are started inside prefill without attention."""
    return plugged_in("skip_attention")


def register() -> None:
    """Entry point, in SGLang's processes."""
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    for backend in BACKENDS:
        HookRegistry.register(f"sglang.srt.layers.attention.{backend}", _write_only, HookType.REPLACE)


def _write_only(
    backend: Any,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: Any,
    forward_batch: Any,
    save_kv_cache: bool = True,
    **_: Any,
) -> torch.Tensor:
    """As a backend's forward_extend: q, and the result, are [tokens, Hq * d]."""
    from sglang.srt.mem_cache.memory_pool import KVWriteLoc

    backend.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
    return torch.zeros_like(q)
