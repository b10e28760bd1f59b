"""Prefill of one Llama-3.1-8B layer in plain torch: what the index build is compared with."""

from functools import cache

import torch

HIDDEN, INNER, HEADS, KV_HEADS, DIM = 4096, 14336, 32, 8, 128
MEASURED = 32768
CHUNK = 8192


@cache
def layer_prefill_ms(context: int) -> float:
    """Matrix products (linear in the context) and causal attention (quadratic), measured at 32k and scaled.

    Less than an engine takes: norms, RoPE, activations and scheduling are left out.
    """
    linear = _linear_ms() * context / CHUNK
    return linear + _attention_ms() * (context / MEASURED) ** 2


@cache
def _linear_ms() -> float:
    shapes = [((HEADS + 2 * KV_HEADS) * DIM, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER)]
    pairs = [(_random(CHUNK, columns), _random(rows, columns)) for rows, columns in shapes]
    return _median_ms(lambda: [x @ w.T for x, w in pairs])


@cache
def _attention_ms() -> float:
    q, k, v = (_random(1, HEADS, MEASURED, DIM) for _ in range(3))
    attend = torch.nn.functional.scaled_dot_product_attention
    return _median_ms(lambda: attend(q, k, v, is_causal=True))


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device="cuda")


def _median_ms(call: object, repeats: int = 5) -> float:
    assert callable(call)
    call()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[len(times) // 2]
