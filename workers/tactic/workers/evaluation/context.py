"""A prefilled context: its KV cache, which many answers can start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from tactic.workers.evaluation.layer import Layer, Step
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.statistics import Reads, attend

# Logits that are held at once, as a number of fp32 elements; several tensors of this size live together.
_ELEMENTS = {"cuda": 1 << 26, "cpu": 1 << 24}


class KVCache:
    """Keys and values of one sequence in all layers; what transformers calls `past_key_values`."""

    def __init__(
        self, layers: int, capacity: int, heads: int, dim: int, dtype: torch.dtype, device: str
    ) -> None:
        shape = (layers, capacity, heads, dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def get_seq_length(self, layer: int = 0) -> int:
        """Positions before those of the present forward pass."""
        return self.length

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Writes `[1, H, m, d]` behind what is there; returns all, `[1, H, n, d]`. The length stays."""
        end = self.length + keys.shape[2]
        self.keys[layer, self.length : end] = keys[0].transpose(0, 1)
        self.values[layer, self.length : end] = values[0].transpose(0, 1)
        return self.keys[layer, :end].transpose(0, 1)[None], self.values[layer, :end].transpose(0, 1)[None]


def attention_hook(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: None,
    *,
    scaling: float,
    attend: Any,
    **_: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention interface: hands over to the `attend` that the forward pass was given."""
    return attend(module.layer_idx, query, key, value, scaling), None


def prefill_attention(layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Dense causal attention of a chunk `[1, Hq, m, d]` over `[1, H, n, d]`; returns `[1, m, Hq, d]`."""
    m, n = query.shape[2], key.shape[2]
    settings: dict[str, Any] = {"scale": scale, "enable_gqa": True}
    if query.is_cuda:
        # Not every one of SDPA's CUDA kernels takes grouped heads.
        group = query.shape[1] // key.shape[1]
        key, value = (each.repeat_interleave(group, 1) for each in (key, value))
        settings["enable_gqa"] = False
    if m == n:
        settings["is_causal"] = True
    elif query.is_cuda:
        settings["attn_mask"] = causal_lower_right(m, n)
    else:
        settings["attn_mask"] = torch.ones(m, n, dtype=torch.bool, device=query.device).tril(n - m)
    return scaled_dot_product_attention(query, key, value, **settings).transpose(1, 2)


@dataclass(frozen=True)
class Answer:
    """A greedily decoded answer.

    Attributes:
        tokens: generated ids, without the one that stops.
        reads: of every decode step, fields `[L, Hq, steps]`.
        passes: forward passes that it took.
    """

    tokens: list[int]
    reads: Reads
    passes: int


class Context:
    """The KV cache of a prompt without its last token, from which answers are decoded by any method.

    The prompt's last token is the first decode step: its query chooses an answer's first token, so the
    method is active for that, too. Answers share the cache: one pass after the other.

    Args:
        model: of transformers, with `attention_hook` as its attention.
        cache: holds the prompt without its last token.
        last: the prompt's last token.
        layers: what methods may build an index over.
    """

    def __init__(self, model: Any, cache: KVCache, last: int, layers: list[Layer]) -> None:
        self.model = model
        self.cache = cache
        self.last = last
        self.layers = layers
        self.length = cache.length

    def continued(self, tokens: Sequence[int], *, reindex: bool) -> Context:
        """The context after the tokens of the last pass, with the keys that this pass wrote.

        Args:
            tokens: of the last `force`, at least one.
            reindex: indexes cover all positions from now on; else those that they covered before.
        """
        self.cache.length = self.length + len(tokens)
        layers = self.layers
        if reindex:
            layers = [layer.over(self.cache.keys[layer.number, : self.cache.length]) for layer in layers]
        return Context(self.model, self.cache, tokens[-1], layers)

    def force(
        self, tokens: Sequence[int], method: Method, *, measure: float | None = None
    ) -> tuple[Tensor, Reads]:
        """Decodes given tokens in one pass, each as one decode step would.

        Args:
            tokens: m ids that follow the prompt.
            method: of attention.
            measure: see `statistics.attend`.

        Returns:
            Logits `[m + 1, vocabulary]` fp32 of the positions after the prompt's last token and after each
            given one, and the figures of these m + 1 queries, fields `[L, Hq, m + 1]`.
        """
        return self._decode([self.last, *tokens], 0, method, measure)

    @torch.no_grad()
    def capture(self, tokens: Sequence[int]) -> list[Step]:
        """The queries of the prompt's last token and of given ones, per layer, under dense attention."""
        steps: list[Step] = []

        def hook(number: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            steps.append(self._step(number, query, scale))
            return prefill_attention(number, query, key, value, scale)

        self._forward([self.last, *tokens], 0, hook)
        return steps

    def decode(
        self,
        method: Method,
        *,
        limit: int,
        stop: Sequence[int],
        guess: Sequence[int] = (),
        measure: float | None = None,
    ) -> Answer:
        """Decodes greedily, in as few passes as guesses allow.

        Each pass runs the last token and a guess at the next ones as decode steps. Those up to the first that
        greedy decoding would not have chosen are what it does choose, so the answer does not depend on the
        guess (up to the rounding of matrix products of another size).

        Args:
            method: of attention.
            limit: most tokens to generate.
            stop: ids that end the answer.
            guess: what the answer may be.
            measure: see `statistics.attend`.
        """
        known = [self.last]
        reads: list[Reads] = []
        draft = list(guess)
        while True:
            begin = len(known)
            tried = [known[-1], *draft[: limit - begin]]
            logits, figures = self._decode(tried, begin - 1, method, measure)
            chosen = logits.argmax(-1).tolist()
            right = next((i for i, token in enumerate(tried[1:]) if token != chosen[i]), len(tried) - 1)
            new = chosen[: right + 1]
            ended = next((i for i, token in enumerate(new) if token in stop), None)
            new = new[:ended]
            known += new
            reads.append(figures.first(len(new) + (ended is not None)))
            if ended is not None or len(known) > limit:
                return Answer(known[1:], Reads.join(reads), len(reads))
            # What was chosen after wrong tokens is the next guess; the worse guesses are, the shorter.
            draft = chosen[right + 1 :][: 2 * len(new)]

    @torch.no_grad()
    def _decode(
        self, tokens: Sequence[int], after: int, method: Method, measure: float | None
    ) -> tuple[Tensor, Reads]:
        """One pass of decode steps at `length + after`; what the cache holds before that stays."""
        reads: list[Reads] = []

        def hook(number: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
            step = self._step(number, query, scale)
            parts = [attend(part, method, measure) for part in step.split(_ELEMENTS[query.device.type])]
            reads.append(Reads.join([figures for _, figures in parts]))
            out = torch.cat([out for out, _ in parts], 2).flatten(0, 1)
            return out.transpose(0, 1)[None].to(query.dtype)

        logits = self._forward(tokens, after, hook)
        return logits, Reads.stack(reads).cpu()

    def _step(self, number: int, query: Tensor, scale: float) -> Step:
        heads = self.cache.keys.shape[2]
        m, n = query.shape[2], self.cache.length + query.shape[2]
        grouped = query[0].float().view(heads, -1, m, query.shape[3]) * scale
        keys, values = self.cache.keys[number, :n], self.cache.values[number, :n]
        return Step(self.layers[number], grouped, keys, values, self.cache.length)

    def _forward(self, tokens: Sequence[int], after: int, hook: Any) -> Tensor:
        if self.length + after + len(tokens) > self.cache.keys.shape[1]:
            raise ValueError(
                f"{len(tokens)} tokens after {self.length + after} do not fit the cache of "
                f"{self.cache.keys.shape[1]}: prefill with more room"
            )
        self.cache.length = self.length + after
        logits: Tensor = forward(self.model, tokens, self.cache, hook, keep=len(tokens))
        return logits.float()


def forward(model: Any, tokens: Sequence[int], cache: KVCache, hook: Any, *, keep: int) -> Tensor:
    """A forward pass of tokens behind what the cache holds; logits `[keep, vocabulary]` of the last ones."""
    device = cache.keys.device
    ids = torch.tensor([list(tokens)], device=device)
    positions = torch.arange(cache.length, cache.length + ids.shape[1], device=device)[None]
    result = model(
        input_ids=ids,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=keep,
        attend=hook,
    )
    logits: Tensor = result.logits[0]
    return logits
