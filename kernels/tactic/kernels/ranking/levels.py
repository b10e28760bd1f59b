"""Scores in levels, so that clusters can be ranked by counting instead of sorting.

A level is 1/32 nat wide. What lies in one counts as equal and is selected together; its weight is that of the
level's middle, which is 1.6 % off at most. Levels count from the score of the request's first cluster, which
takes out what all keys have in common. Beyond 16 nats from it they are twice as wide, beyond 48 four times,
and so on: a distance is shifted by 16 and cut to 9 bits of its mantissa.
"""

import torch
from torch import Tensor

LEVELS = 4096
"""The last on either side has all that is farther away than 240 nats."""
SHIFT = 16.0
DROPPED = 14
"""Bits of a float's mantissa that a level leaves out."""
FIRST = int(torch.tensor(SHIFT).view(torch.int32)) >> DROPPED


def levels_of(scores: Tensor, reference: Tensor) -> Tensor:
    """Levels int64 of scores `[Hq, K]`, counted from `reference` `[Hq]`: 0 … LEVELS - 1."""
    distance = scores - reference[:, None]
    steps = ((distance.abs() + SHIFT).view(torch.int32) >> DROPPED) - FIRST
    steps = steps.clamp(max=LEVELS // 2 - 1).long()
    return torch.where(distance >= 0, LEVELS // 2 + steps, LEVELS // 2 - 1 - steps)


def middles_of(levels: Tensor, reference: Tensor) -> Tensor:
    """Scores `[Hq, K]` fp32 in the middle of their levels."""
    above = levels >= LEVELS // 2
    steps = torch.where(above, levels - LEVELS // 2, LEVELS // 2 - 1 - levels).int()
    distance = (((steps + FIRST) << DROPPED) + (1 << DROPPED - 1)).view(torch.float32) - SHIFT
    return reference[:, None] + torch.where(above, distance, -distance)
