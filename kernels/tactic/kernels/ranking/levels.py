"""Scores in levels, so that clusters can be ranked by counting instead of sorting.

A level is 1/32 nat wide: what lies in one differs by 3 % in weight at most and is selected together. Levels
count from the score of the request's first cluster, which takes out what all keys have in common; far from it
they widen.
"""

import torch
from torch import Tensor

LEVELS = 4096
PER_NAT = 32
FINE = 1536
"""Levels of that width on either side, 48 nats; the 512 beyond widen by 0.7 % each, to 1536 nats."""
DOUBLING = 512 / 5
"""Levels in which the distance doubles there."""


def levels_of(scores: Tensor, reference: Tensor) -> Tensor:
    """Levels int64 of scores `[Hq, K]`, counted from `reference` `[Hq]`: 0 … LEVELS - 1."""
    distance = scores - reference[:, None]
    steps = distance.abs() * PER_NAT
    far = FINE + DOUBLING * torch.log2((steps / FINE).clamp(min=1))
    steps = torch.where(steps < FINE, steps, far).clamp(max=LEVELS // 2 - 1).floor().long()
    return torch.where(distance >= 0, LEVELS // 2 + steps, LEVELS // 2 - 1 - steps)
