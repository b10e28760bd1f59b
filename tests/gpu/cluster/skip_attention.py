"""Prefill without attention: keys and values are written, and the attention's output is zero.

A million tokens are then prefilled in the time of their matrix products. With the structured weights of
`tests/gpu/engine/structured.py`, whose attention adds little to what the next layer sees, keys stay nearly
what they are; what a decode step costs depends on their arrangement, not on what they mean. SGLang loads this
as a plug-in in the processes that are started inside `attention_skipped`.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

BACKENDS = (
    "flashinfer_backend.FlashInferAttnBackend.forward_extend",
    "torch_native_backend.TorchNativeAttnBackend.forward_extend",
)


@contextmanager
def attention_skipped() -> Iterator[None]:
    """Engines that are started inside prefill without attention."""
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory(prefix="tactic-plugin-") as folder:
        about = Path(folder, "skip_attention-0.dist-info")
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: skip-attention\nVersion: 0\n")
        entry = "[sglang.srt.plugins]\nskip_attention = skip_attention:register\n"
        (about / "entry_points.txt").write_text(entry)
        paths = [folder, str(Path(__file__).parent), *([before] if before else [])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONPATH"]
            else:
                os.environ["PYTHONPATH"] = before


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
