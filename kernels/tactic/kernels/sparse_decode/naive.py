"""Sparse decode attention on CPU: the definition."""

from itertools import pairwise

import torch
from torch import Tensor

from tactic.kernels.dense.naive import attend


def sparse_decode(
    q: Tensor, k_pool: Tensor, v_pool: Tensor, indices: Tensor, indptr: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of each query head over the rows listed for its KV head.

    Args:
        q: `[B, Hq, d]`.
        k_pool: `[slots, H, d]`, contiguous.
        v_pool: `[slots, H, d]`, contiguous.
        indices: `[indptr[-1]]` int32, rows `slot_id * H + h`.
        indptr: `[B * H + 1]` int32, request-major, then KV head: where each list begins.
        scale: of the logits.

    Returns:
        Output `[B, Hq, d]` and log-sum-exp `[B, Hq]` fp32; zeros and -inf where a list is empty.
    """
    batch, query_heads, dim = q.shape
    heads = k_pool.shape[1]
    group = query_heads // heads
    keys, values = k_pool.view(-1, 1, dim), v_pool.view(-1, 1, dim)
    grouped = q.view(batch * heads, group, dim)
    out = torch.zeros_like(grouped)
    lse = torch.full((batch * heads, group), -torch.inf, dtype=torch.float32)
    bounds = indptr.tolist()
    for i, (begin, end) in enumerate(pairwise(bounds)):
        if begin < end:
            rows = indices[begin:end]
            gathered = keys.index_select(0, rows), values.index_select(0, rows)
            out[i], lse[i] = attend(grouped[i], *gathered, scale)
    return out.view_as(q), lse.view(batch, query_heads)
