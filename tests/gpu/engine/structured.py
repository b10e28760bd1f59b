"""Random weights whose attention is not uniform: few tokens matter to a query, and like keys lie together.

A token's embedding is that of its topic and some of its own. Where attention and feed-forward layers add
little to the residual stream, a layer's keys and queries are linear in the embedding of their token, before
RoPE. Keys have their energy where RoPE turns slowly, as real ones do; a token's query is made of the keys of
some topics: those of its group, with weights of its own. Its sharpness is set so that a head needs about
`ORACLE` tokens for 90 % of its attention, which is what the paper reports of an 8B model.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

TOPICS = 128
PASSAGE = 8192  # tokens that turn to some of the topics
PASSAGE_TOPICS = 64
RUN = 16  # tokens that stay with one of them
ORACLE = 900
SHARE = 0.9
_OWN = 0.5  # of an embedding, beside its topic's 1
_SLOW = 4 * 8192  # tokens of a turn of RoPE, from which on keys of a segment lie alike
_FAST = 0.15  # of the keys, where it turns faster
_SOUGHT = 4  # topics that a query is made of
_SPREAD = 0.3  # of the logarithms of their weights: a group then reads about 1.7 times what a head selects
_BISECTIONS = 20
_TRIED = 8  # tokens of the prompt whose queries are tried behind it


@dataclass(frozen=True)
class ModelShape:
    """Of a Llama-like checkpoint."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    vocabulary: int
    rope_theta: float

    @classmethod
    def of(cls, config: dict[str, object]) -> "ModelShape":
        """Reads a config.json."""
        numbers = {key: float(str(config[key])) for key in _KEYS.values()}
        fields = {name: numbers[key] for name, key in _KEYS.items()}
        theta = fields.pop("rope_theta")
        return cls(**{name: int(value) for name, value in fields.items()}, rope_theta=theta)


_KEYS = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "dim": "head_dim",
    "vocabulary": "vocab_size",
    "rope_theta": "rope_theta",
}


def prompt(length: int, seed: int, shape: ModelShape) -> list[int]:
    """Passages that turn to some topics, each for a few tokens; a token's topic is its id modulo `TOPICS`."""
    draw = random.Random(f"structured-{seed}")
    ids: list[int] = []
    topics: list[int] = []
    while len(ids) < length:
        if len(ids) % PASSAGE < RUN:
            topics = [draw.randrange(TOPICS) for _ in range(PASSAGE_TOPICS)]
        topic = draw.choice(topics)
        ids += [topic + TOPICS * draw.randrange(shape.vocabulary // TOPICS) for _ in range(RUN)]
    return ids[:length]


@dataclass(frozen=True)
class Weights:
    """What is written over an engine's random weights.

    Attributes:
        shape: of the model.
        topics: `[TOPICS, hidden]` fp32.
        embedding: `[vocabulary, hidden]` bf16, rows of mean square 1.
        seed: of all that is drawn.
        prompt: `[n]` int64, the ids that queries are calibrated on.
        needed: tokens that a head needs for 90 %, mean, of each layer that `tensors` has made.
    """

    shape: ModelShape
    topics: Tensor
    embedding: Tensor
    seed: int
    prompt: Tensor
    needed: list[float] = field(default_factory=list)

    @classmethod
    def create(cls, shape: ModelShape, prompt_ids: list[int], *, seed: int, device: str) -> "Weights":
        """Weights for prompts like this one, at its length."""
        generator = torch.Generator(device).manual_seed(seed)
        topics = torch.randn(TOPICS, shape.hidden, generator=generator, device=device)
        embedding = torch.empty(shape.vocabulary, shape.hidden, dtype=torch.bfloat16, device=device)
        for ids in torch.arange(shape.vocabulary, device=device).split(1 << 14):
            own = torch.randn(len(ids), shape.hidden, generator=generator, device=device)
            mixed = topics[ids % TOPICS] + _OWN * own
            embedding[ids] = (mixed / mixed.square().mean(-1, keepdim=True).sqrt()).to(torch.bfloat16)
        return cls(shape, topics, embedding, seed, torch.tensor(prompt_ids, device=device))

    def tensors(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Names and values, a layer at a time: embedding, norms, queries, keys."""
        ones = torch.ones(self.shape.hidden, dtype=torch.bfloat16, device=self.embedding.device)
        yield [("model.embed_tokens.weight", self.embedding), ("model.norm.weight", ones)]
        for layer in range(self.shape.layers):
            prefix = f"model.layers.{layer}"
            query, key, needed = self.projections(layer)
            self.needed.append(float(needed.mean()))
            yield [
                (f"{prefix}.input_layernorm.weight", ones),
                (f"{prefix}.post_attention_layernorm.weight", ones),
                (f"{prefix}.self_attn.q_proj.weight", query.to(torch.bfloat16)),
                (f"{prefix}.self_attn.k_proj.weight", key.to(torch.bfloat16)),
            ]

    def projections(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of one layer: queries `[Hq * d, hidden]`, keys `[H * d, hidden]`, tokens that heads need `[Hq]`.

        Calibrated on tokens of the prompt, as if they came next.
        """
        shape, device = self.shape, self.embedding.device
        generator = torch.Generator(device).manual_seed(self.seed * 1000 + layer + 1)
        group = shape.heads // shape.kv_heads

        def draw(*size: int) -> Tensor:
            return torch.randn(*size, generator=generator, device=device)

        key = draw(shape.kv_heads, shape.dim, shape.hidden) / math.sqrt(shape.hidden)
        key *= torch.where(self._turns() > _SLOW, 1.0, _FAST).repeat(2)[:, None]
        seen = key @ self.topics.T  # keys of the topics [H, d, topics]
        query = torch.zeros(shape.kv_heads, group, shape.dim, shape.hidden, device=device)
        for head in range(shape.kv_heads):
            for number in range(_SOUGHT):
                order = list(range(TOPICS))
                random.Random(f"{self.seed} {layer} {head} {number}").shuffle(order)
                found = seen[head][:, order] @ self.topics / shape.hidden
                weight = draw(1).abs() * (_SPREAD * draw(group)).exp()
                query[head] += weight[:, None, None] * found
        needed = torch.zeros(shape.kv_heads, group, device=device)
        tokens = self.embedding[self.prompt]
        tried = tokens[:: len(tokens) // _TRIED].float()
        for head in range(shape.kv_heads):
            keys = self._rotated((tokens @ key[head].to(tokens.dtype).T).float(), 0)
            own = self._rotated(tried @ query[head].mT, len(tokens))
            logits = (own @ keys.T / math.sqrt(shape.dim)).sort(-1, descending=True).values
            factor, needed[head] = _sharpness(logits, min(ORACLE, len(self.prompt) // 8))
            query[head] *= factor[:, None, None]
        return query.flatten(0, 2), key.flatten(0, 1), needed.flatten()

    def _turns(self) -> Tensor:
        """Tokens of one turn of RoPE, for each pair of dimensions, `[d / 2]` fp64."""
        half = self.shape.dim // 2
        steps = torch.arange(half, dtype=torch.float64, device=self.embedding.device) / half
        return 2 * math.pi * self.shape.rope_theta**steps

    def _rotated(self, values: Tensor, first: int) -> Tensor:
        """RoPE of `[..., n, d]` at the positions first, first + 1, …, in Llama's halves."""
        half = self.shape.dim // 2
        positions = first + torch.arange(values.shape[-2], device=values.device)
        angle = (2 * math.pi * positions[:, None].double() / self._turns()).float()
        a, b = values[..., :half], values[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def _sharpness(logits: Tensor, oracle: int) -> tuple[Tensor, Tensor]:
    """Factors `[heads]` so that `oracle` tokens hold 90 % on average, and how many then do.

    Args:
        logits: `[heads, queries, n]`, descending.
        oracle: tokens.
    """

    def needed(factor: Tensor) -> Tensor:
        shares = (logits * factor[:, None, None]).softmax(-1).cumsum(-1)
        return ((shares < SHARE).sum(-1) + 1).float().mean(-1)

    low = torch.zeros(len(logits), device=logits.device)
    high = torch.full_like(low, 1000.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        many = needed(middle) > oracle
        low, high = torch.where(many, middle, low), torch.where(many, high, middle)
    return high, needed(high)
