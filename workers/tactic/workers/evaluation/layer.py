"""One layer's keys of a context, and what methods build from them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

Structure = TypeVar("Structure")


@dataclass(frozen=True)
class Layer:
    """What was there of one layer when the prompt had been prefilled.

    Attributes:
        number: the layer's place in the model.
        keys: `[n, H, d]`, keys after RoPE of the n prompt positions, the model's dtype, contiguous.
        sinks: first positions that every method reads.
    """

    number: int
    keys: Tensor
    sinks: int
    _structures: dict[Any, Any] = field(default_factory=dict, repr=False)

    def structure(self, build: Callable[[Layer], Structure]) -> Structure:
        """What `build` (hashable: a function or a frozen dataclass) makes of this layer, made once."""
        if build not in self._structures:
            self._structures[build] = build(self)
        found: Structure = self._structures[build]
        return found

    def over(self, keys: Tensor) -> Layer:
        """The same layer with other keys, of which nothing is built yet."""
        return Layer(self.number, keys, self.sinks)


@dataclass(frozen=True)
class Step:
    """Queries of m consecutive positions in one layer, and all that they may attend to.

    Query i stands at position `first + i` and sees the positions up to its own. `n = first + m`.

    Attributes:
        layer: with the structures of the prompt.
        query: `[H, G, m, d]` fp32, scaled: a dot product with a key is a logit.
        keys: `[n, H, d]`, the model's dtype, contiguous.
        values: `[n, H, d]`.
        first: position of the first query.
    """

    layer: Layer
    query: Tensor
    keys: Tensor
    values: Tensor
    first: int

    @cached_property
    def visible(self) -> Tensor:
        """Which positions each query sees, `[m, n]` bool."""
        n, m = self.keys.shape[0], self.query.shape[2]
        positions = torch.arange(n, device=self.keys.device)
        return positions <= torch.arange(self.first, self.first + m, device=self.keys.device)[:, None]

    @cached_property
    def logits(self) -> Tensor:
        """True logits `[H, G, m, n]` fp32; -inf where a position is not visible."""
        heads, group, m, dim = self.query.shape
        keys = self.keys.permute(1, 2, 0).float()
        logits = torch.bmm(self.query.reshape(heads, group * m, dim), keys).view(heads, group, m, -1)
        return logits.masked_fill_(~self.visible, -torch.inf)

    @cached_property
    def total(self) -> Tensor:
        """Log of the total weight of all visible positions, `[H, G, m]` fp32."""
        return self.logits.logsumexp(-1)

    def always(self, indexed: int) -> Tensor:
        """Sinks, and the positions from `indexed` on: `[n]` bool; what no method may leave out."""
        mask = torch.zeros(self.keys.shape[0], dtype=torch.bool, device=self.keys.device)
        mask[: self.layer.sinks] = True
        mask[indexed:] = True
        return mask

    def split(self, elements: int) -> list[Step]:
        """The step in parts whose logits have at most `elements` elements, or one query if that is more."""
        heads, group, m, _ = self.query.shape
        size = max(1, elements // (heads * group * self.keys.shape[0]))
        if size >= m:
            return [self]
        parts = []
        for begin in range(0, m, size):
            query = self.query[:, :, begin : begin + size]
            end = self.first + begin + query.shape[2]
            parts.append(
                Step(self.layer, query, self.keys[:end], self.values[:end], self.first + begin),
            )
        return parts
