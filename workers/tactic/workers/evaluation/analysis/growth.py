"""Tactic over a generation during which the index grows, or does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from tactic.workers.evaluation.layer import Layer, Step
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.methods.tactic import Tactic


@dataclass(frozen=True)
class Growing(Method):
    """Every `interval` decode steps the positions generated since are clustered; until then they are tail.

    As with the workers' refresh of scope `tail`: full segments stay, the open one is clustered anew together
    with the tail. Good for one generation: it remembers indexes of generated keys.

    Attributes:
        tactic: selects, with the index as it is.
        interval: decode steps between two refreshes; None: the index stays that of the prompt.
        window: most generated positions that are kept; older ones are not read any more. None keeps all.
    """

    name: ClassVar[str] = "growing"
    tactic: Tactic
    interval: int | None
    window: int | None = None
    _layers: dict[tuple[int, int], Layer] = field(default_factory=dict, repr=False)

    def select(self, step: Step) -> Tensor:
        """See `Method.select`."""
        parts = []
        for part, clustered in self._blocks(step):
            layer = self._layer(part, clustered)
            chosen = self.tactic.select(replace(part, layer=layer))
            parts.append(torch.nn.functional.pad(chosen, (0, step.keys.shape[0] - chosen.shape[-1])))
        selected = torch.cat(parts, 2)
        return selected if self.window is None else selected & ~_dropped(step, self.window)

    def _blocks(self, step: Step) -> Iterator[tuple[Step, int]]:
        """Runs of queries that see the same index, and how many positions that covers."""
        prompt = step.layer.keys.shape[0]
        queries = range(step.query.shape[2])
        for clustered, run in groupby(queries, lambda query: self._clustered(prompt, step.first + query)):
            chosen = list(run)
            end = step.first + chosen[-1] + 1
            query = step.query[:, :, chosen[0] : chosen[-1] + 1]
            first = step.first + chosen[0]
            yield Step(step.layer, query, step.keys[:end], step.values[:end], first), clustered

    def _clustered(self, prompt: int, position: int) -> int:
        if self.interval is None:
            return prompt
        return prompt + (position - prompt) // self.interval * self.interval

    def _layer(self, step: Step, clustered: int) -> Layer:
        """The layer as if the clustered positions were its prompt."""
        if clustered == step.layer.keys.shape[0]:
            return step.layer
        known = (step.layer.number, clustered)
        if known not in self._layers:
            self._layers[known] = replace(step.layer, keys=step.keys[:clustered], _structures={})
        return self._layers[known]


def _dropped(step: Step, window: int) -> Tensor:
    """Generated positions that have left the window, `[m, n]` bool."""
    positions = torch.arange(step.keys.shape[0], device=step.keys.device)
    queries = torch.arange(step.first, step.first + step.query.shape[2], device=step.keys.device)[:, None]
    return (positions >= step.layer.keys.shape[0]) & (positions <= queries - window)
