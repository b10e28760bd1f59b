"""Captures of known keys and queries."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.layer import Layer, Step

CaptureMaker = Callable[..., Capture]


@pytest.fixture(scope="session")
def make_step() -> Callable[..., Step]:
    def make(keys: Tensor, query: Tensor, number: int = 0) -> Step:
        """The last m of the keys `[n, H, d]` are those of the queries `[H, G, m, d]`, which are scaled."""
        first = keys.shape[0] - query.shape[2]
        layer = Layer(number, keys[:first], sinks=16)
        return Step(layer, query, keys, torch.zeros_like(keys), first)

    return make


@pytest.fixture(scope="session")
def random_capture(make_step: Callable[..., Step]) -> CaptureMaker:
    def make(
        context: int = 2048, *, heads: int = 2, group: int = 3, steps: int = 4, layers: int = 2, seed: int = 0
    ) -> Capture:
        """Keys that recur in topics; queries that look for some."""
        generator = torch.Generator().manual_seed(seed)
        made = []
        for number in range(layers):
            topics = torch.randn(context // 64, heads, 16, generator=generator)
            topic = torch.randint(len(topics), (context // 8 + 8,), generator=generator).repeat_interleave(8)
            keys = topics[topic[: context + steps]]
            keys = keys + 0.5 * torch.randn(keys.shape, generator=generator)
            query = torch.randn(heads, group, steps, 16, generator=generator)
            made.append(make_step(keys, query, number))
        return Capture("text", context, seed, tuple(made))

    return make


@pytest.fixture(scope="session")
def capture(random_capture: CaptureMaker) -> Capture:
    return random_capture()
