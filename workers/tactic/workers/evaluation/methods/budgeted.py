"""Methods that read a fixed number of positions: clean implementations from their papers.

All of them read sinks and tail, which count, and decide for a KV head, so that each reads its budget.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tactic.workers.evaluation.layer import Layer, Step
from tactic.workers.evaluation.methods.base import Method


@dataclass(frozen=True)
class Budgeted(Method):
    """Reads `budgets[layer]` positions per KV head and step, or all where there are not so many.

    Attributes:
        budgets: positions, for each layer.
    """

    budgets: tuple[int, ...]

    def select(self, step: Step) -> Tensor:
        """See `Method.select`."""
        always = step.always(self.indexed(step.layer))
        free = self.budgets[step.layer.number] - (always & step.visible).sum(-1)
        chosen = self.choose(step, free.clamp(min=0), always) | always
        return (chosen & step.visible)[:, None].expand(step.logits.shape)

    def indexed(self, layer: Layer) -> int:
        """Positions from here on are tail."""
        return layer.keys.shape[0]

    @abstractmethod
    def choose(self, step: Step, free: Tensor, always: Tensor) -> Tensor:
        """The `free` `[m]` int64 best positions besides those `always` `[n]` bool read.

        Returns:
            `[H, m, n]` bool.
        """


@dataclass(frozen=True)
class Window(Budgeted):
    """Sinks and the latest positions (StreamingLLM, arXiv 2309.17453)."""

    name: ClassVar[str] = "window"

    def choose(self, step: Step, free: Tensor, always: Tensor) -> Tensor:
        """See `Budgeted.choose`."""
        positions = torch.arange(always.shape[0], device=always.device)
        return (positions >= self.indexed(step.layer) - free[:, None])[None]


@dataclass(frozen=True)
class TopK(Budgeted):
    """The positions of the largest true weight, summed over the group: the best of a fixed budget."""

    name: ClassVar[str] = "topk"

    def choose(self, step: Step, free: Tensor, always: Tensor) -> Tensor:
        """See `Budgeted.choose`."""
        shares = torch.exp(step.logits - step.total[..., None]).sum(1)
        return highest(shares.masked_fill(always, -1), free)


PAGE = 16


@dataclass(frozen=True)
class Pages:
    """Element-wise bounds of the keys of each whole page, `[H, pages, d]` fp32 both."""

    lowest: Tensor
    highest: Tensor


def build_pages(layer: Layer) -> Pages:
    """The pages of a layer's prompt; a last one that is not full is left to the tail."""
    n, heads, dim = layer.keys.shape
    pages = layer.keys[: n // PAGE * PAGE].float().view(n // PAGE, PAGE, heads, dim)
    return Pages(pages.amin(1).transpose(0, 1), pages.amax(1).transpose(0, 1))


@dataclass(frozen=True)
class Quest(Budgeted):
    """Pages of 16 by an upper bound of their logits (Quest, arXiv 2406.10774, section 3.2).

    The bound is Σ_i max(q_i·min_i, q_i·max_i). The heads of a group share their pages: the bounds, made a
    distribution by a softmax for each head, are added. All layers are sparse, as with the other methods.
    """

    name: ClassVar[str] = "quest"

    def indexed(self, layer: Layer) -> int:
        """See `Budgeted.indexed`."""
        return layer.keys.shape[0] // PAGE * PAGE

    def choose(self, step: Step, free: Tensor, always: Tensor) -> Tensor:
        """See `Budgeted.choose`."""
        pages = step.layer.structure(build_pages)
        heads, group, m, dim = step.query.shape
        query = step.query.reshape(heads, group * m, dim)
        bound = torch.bmm(query.clamp(min=0), pages.highest.mT) + torch.bmm(
            query.clamp(max=0), pages.lowest.mT
        )
        importance = bound.softmax(-1).view(heads, group, m, -1).sum(1)
        importance[..., : step.layer.sinks // PAGE] = -1  # read anyway
        best = highest(importance, (free + PAGE // 2) // PAGE).repeat_interleave(PAGE, -1)
        return torch.nn.functional.pad(best, (0, always.shape[0] - best.shape[-1]))


def highest(values: Tensor, counts: Tensor) -> Tensor:
    """Marks the `counts[i]` largest of `values[h, i]`: `[H, m, n]` and `[m]` to `[H, m, n]` bool."""
    size = min(int(counts.max()), values.shape[-1])
    best = values.topk(size, dim=-1)
    taken = torch.arange(size, device=values.device) < counts[:, None]
    return torch.zeros_like(values, dtype=torch.bool).scatter_(2, best.indices, taken.expand_as(best.indices))
