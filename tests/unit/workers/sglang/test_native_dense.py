"""Prefill on the CPU against torch's own attention."""

from collections.abc import Callable

import pytest
import torch

ExtendAttention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float | None], torch.Tensor]


@pytest.fixture
def extend_attention(sglang: None) -> ExtendAttention:
    from tactic.workers.sglang import native_dense

    return native_dense.extend_attention


@pytest.mark.parametrize(("new", "prefix"), [(1, 0), (7, 0), (1, 300), (64, 193), (130, 1)])
@pytest.mark.parametrize(("query_heads", "heads"), [(4, 4), (6, 2), (8, 1)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_extend_equals_causal_attention(
    extend_attention: ExtendAttention,
    new: int,
    prefix: int,
    query_heads: int,
    heads: int,
    scale: float | None,
) -> None:
    generator = torch.Generator().manual_seed(new + prefix)
    n, d = prefix + new, 16
    q = torch.randn(new, query_heads, d, generator=generator)
    keys, values = (torch.randn(n, heads, d, generator=generator) for _ in range(2))
    mask = torch.ones(new, n, dtype=torch.bool).tril(diagonal=prefix)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1),
        keys.transpose(0, 1),
        values.transpose(0, 1),
        attn_mask=mask,
        scale=scale,
        enable_gqa=True,
    ).transpose(0, 1)
    torch.testing.assert_close(extend_attention(q, keys, values, scale), expected, atol=2e-6, rtol=1e-5)


def test_sharp_logits_stay_finite(extend_attention: ExtendAttention) -> None:
    generator = torch.Generator().manual_seed(1)
    q = 100 * torch.randn(3, 2, 8, generator=generator)
    keys, values = (torch.randn(40, 1, 8, generator=generator) for _ in range(2))
    assert extend_attention(q, keys, values, None).isfinite().all()
