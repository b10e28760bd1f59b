"""Dense attention on the CPU, linear in what is new.

SGLang's `torch_native` backend pads the queries of an extend to the whole context, so that one new token on
a long prefix costs as much as the first prefill. Here the new queries meet the prefix and themselves in two
calls, which are merged by their log-sum-exp.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class NativeDenseBackend(TorchNativeAttnBackend):  # type: ignore[misc]  # SGLang is untyped
    """`torch_native` with an extend whose cost is (new tokens) × (context)."""

    def _run_sdpa_forward_extend(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        req_to_token: torch.Tensor,
        req_pool_indices: torch.Tensor,
        seq_lens: torch.Tensor,
        extend_prefix_lens: torch.Tensor,
        extend_seq_lens: torch.Tensor,
        encoder_lens: torch.Tensor | None = None,
        scaling: float | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """As the parent's; `query` and `output` are [tokens, Hq, d], the caches [slots, H, d]."""
        first = 0
        batch = zip(
            req_pool_indices.tolist(), extend_prefix_lens.tolist(), extend_seq_lens.tolist(), strict=True
        )
        for row, prefix, new in batch:
            slots = req_to_token[row, : prefix + new]
            keys, values = k_cache[slots].to(query.dtype), v_cache[slots].to(query.dtype)
            output[first : first + new] = extend_attention(query[first : first + new], keys, values, scaling)
            first += new
        return output


def extend_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """Causal attention of the last m of n positions.

    Args:
        q: queries of positions n-m … n-1, [m, Hq, d].
        keys: [n, H, d], H divides Hq.
        values: [n, H, d].
        scale: of the logits; None takes 1/√d.

    Returns:
        [m, Hq, d].
    """
    m, query_heads, d = q.shape
    n, heads, _ = keys.shape
    group = query_heads // heads
    q, keys, values = (x.transpose(0, 1).unsqueeze(0) for x in (q, keys, values))
    new_keys, new_values = (x[:, :, n - m :].repeat_interleave(group, dim=1) for x in (keys, values))
    out, lse = _flash(q, new_keys, new_values, is_causal=True, scale=scale)
    if n > m:
        # Every new query sees the whole prefix: the heads of a group become rows, so keys are not copied.
        rows = q.reshape(1, heads, group * m, d)
        old, old_lse = _flash(rows, keys[:, :, : n - m], values[:, :, : n - m], scale=scale)
        old, old_lse = old.reshape(1, query_heads, m, d), old_lse.reshape(1, query_heads, m)
        weight = torch.sigmoid(old_lse - lse.reshape(1, query_heads, m)).unsqueeze(-1).to(out.dtype)
        out = torch.lerp(out, old, weight)
    result: torch.Tensor = out[0].transpose(0, 1)
    return result
