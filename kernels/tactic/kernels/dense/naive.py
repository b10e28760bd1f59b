"""Dense decode attention on CPU."""

import torch
from torch import Tensor


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of one position over n keys, on CPU.

    Args:
        q: `[Hq, d]`.
        keys: `[n, H, d]`, same dtype; n ≥ 1, Hq a multiple of H.
        values: `[n, H, d]`.
        scale: of the logits, usually 1/√d.

    Returns:
        Output `[Hq, d]` in the dtype of `q`, and log-sum-exp of the scaled logits `[Hq]` fp32.
    """
    group = q.shape[0] // keys.shape[1]
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[0], dtype=torch.float32)
    for head in range(keys.shape[1]):
        members = slice(head * group, (head + 1) * group)
        # SDPA's own CPU kernel, called directly because it also returns the log-sum-exp. The group stands in
        # the heads' place, as with SGLang's torch_native backend, whose output it equals to the bit.
        head_out, head_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q[None, members, None],
            keys[:, head].expand(1, group, -1, -1),
            values[:, head].expand(1, group, -1, -1),
            scale=scale,
        )
        out[members], lse[members] = head_out[0, :, 0], head_lse.flatten()
    return out, lse


def dense_decode(
    q: Tensor,
    k_pool: Tensor,
    v_pool: Tensor,
    req_to_token: Tensor,
    request_slots: Tensor,
    seq_lens: Tensor,
    *,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Decode attention over all positions of each request, on CPU.

    Args:
        q: `[B, Hq, d]`.
        k_pool: `[slots, H, d]`, keys.
        v_pool: `[slots, H, d]`, values.
        req_to_token: `[R, max_context]` integer, pool slot of each position of each request slot.
        request_slots: `[B]` integer.
        seq_lens: `[B]` integer, ≥ 1, the current token included.
        scale: of the logits.

    Returns:
        Output `[B, Hq, d]` and log-sum-exp `[B, Hq]` fp32.
    """
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:2], dtype=torch.float32)
    for i, (slot, length) in enumerate(zip(request_slots.tolist(), seq_lens.tolist(), strict=True)):
        slot_ids = req_to_token[slot, :length]
        keys, values = k_pool.index_select(0, slot_ids), v_pool.index_select(0, slot_ids)
        out[i], lse[i] = attend(q[i], keys, values, scale)
    return out, lse
