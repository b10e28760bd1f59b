"""A Llama with grouped-query attention, written for fast training in plain PyTorch.

Everything but attention works on a flat list of tokens, so one compiled graph serves every context length.
Parameter names are those of `LlamaForCausalLM`.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model; the defaults are those of the shipped checkpoint (13.5 M parameters)."""

    vocab_size: int = 4096
    hidden_size: int = 384
    intermediate_size: int = 1408
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 64
    rope_theta: float = 5e6
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 131072

    def to_huggingface(self) -> dict[str, Any]:
        """The fields of the checkpoint's config.json that describe the network."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            **asdict(self),
        }


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE in Llama's half-split form. x [N, heads, d], cos and sin [N, 1, d/2] fp32."""
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def _before_attention(
    x: Tensor,
    norm: Tensor,
    wq: Tensor,
    wk: Tensor,
    wv: Tensor,
    cos: Tensor,
    sin: Tensor,
    dim: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    h = _rms_norm(x, norm, eps)
    q, k, v = (F.linear(h, w.to(h.dtype)).view(len(h), -1, dim) for w in (wq, wk, wv))
    return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def _after_attention(
    x: Tensor, attended: Tensor, wo: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor, eps: float
) -> Tensor:
    x = x + F.linear(attended, wo.to(x.dtype))
    h = _rms_norm(x, norm, eps)
    return x + F.linear(F.silu(F.linear(h, gate.to(x.dtype))) * F.linear(h, up.to(x.dtype)), down.to(x.dtype))


def _token_losses(x: Tensor, norm: Tensor, embedding: Tensor, targets: Tensor, eps: float) -> Tensor:
    logits = F.linear(_rms_norm(x, norm, eps), embedding.to(x.dtype)).float()
    return F.cross_entropy(logits, targets, reduction="none")


class _Attention(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        query, kv = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, kv, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, kv, bias=False)
        self.o_proj = nn.Linear(query, c.hidden_size, bias=False)


class _Mlp(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)


class _Layer(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.self_attn = _Attention(c)
        self.mlp = _Mlp(c)
        self.input_layernorm = nn.RMSNorm(c.hidden_size)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size)


class _Trunk(nn.Module):
    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(_Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = nn.RMSNorm(c.hidden_size)


class Llama(nn.Module):
    """The network. `attention` opens the SDPA backend to use; the default lets PyTorch choose."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        compiled: bool = False,
        attention: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = _Trunk(config)
        self.attention = attention
        wrap: Callable[[Callable[..., Any]], Callable[..., Any]]
        wrap = torch.compile(dynamic=False) if compiled else _same
        self._before: Callable[..., tuple[Tensor, Tensor, Tensor]] = wrap(_before_attention)
        self._after: Callable[..., Tensor] = wrap(_after_attention)
        self._losses: Callable[..., Tensor] = wrap(_token_losses)
        self._initialise()

    def _initialise(self) -> None:
        depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                gain = depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                scale = 0.02 if "embed" in name else weight.shape[1] ** -0.5
                nn.init.trunc_normal_(weight, std=gain * scale)

    def layers(self) -> Iterator[_Layer]:
        for layer in self.model.layers:
            assert isinstance(layer, _Layer)
            yield layer

    def hidden(self, tokens: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Tokens and positions [B, T] → the last layer's output [B·T, hidden], before the final norm."""
        c = self.config
        shape = tokens.shape
        exponents = torch.arange(0, c.head_dim, 2, device=tokens.device, dtype=torch.float64) / c.head_dim
        angles = positions.reshape(-1, 1, 1).double() * c.rope_theta**-exponents
        cos, sin = angles.cos().float(), angles.sin().float()
        x: Tensor = self.model.embed_tokens(tokens.reshape(-1)).to(dtype)
        for layer in self.layers():
            a, m = layer.self_attn, layer.mlp
            qkv = self._before(
                x, layer.input_layernorm.weight, a.q_proj.weight, a.k_proj.weight, a.v_proj.weight, cos, sin,
                c.head_dim, c.rms_norm_eps,
            )  # fmt: skip
            with self.attention():
                q, k, v = (part.view(*shape, -1, c.head_dim).transpose(1, 2) for part in qkv)
                attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = self._after(
                x, attended.transpose(1, 2).reshape(x.shape[0], -1), a.o_proj.weight,
                layer.post_attention_layernorm.weight, m.gate_proj.weight, m.up_proj.weight,
                m.down_proj.weight, c.rms_norm_eps,
            )  # fmt: skip
        return x

    def token_losses(self, tokens: Tensor, positions: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Tokens [B, T+1], positions [B, T+1] → cross entropy [B·T] fp32 of each next token, in nats."""
        x = self.hidden(tokens[:, :-1], positions[:, :-1], dtype)
        targets = tokens[:, 1:].reshape(-1)
        return self._losses(
            x, self.model.norm.weight, self.model.embed_tokens.weight, targets, self.config.rms_norm_eps
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Rows of `hidden` → logits [rows, vocabulary]."""
        normed = _rms_norm(hidden, self.model.norm.weight, self.config.rms_norm_eps)
        return F.linear(normed, self.model.embed_tokens.weight.to(hidden.dtype))


def _same(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
