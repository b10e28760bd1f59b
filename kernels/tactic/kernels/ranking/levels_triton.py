# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Levels of scores on the device; see `levels.py`."""

import triton
import triton.language as tl

from tactic.kernels.ranking import levels

_LEVELS = tl.constexpr(levels.LEVELS)
_PER_NAT = tl.constexpr(levels.PER_NAT)
_FINE = tl.constexpr(levels.FINE)
_DOUBLING = tl.constexpr(levels.DOUBLING)


@triton.jit
def level_of(distance):
    """Level int32 of a score at a distance from the reference."""
    steps = tl.abs(distance) * _PER_NAT
    far = _FINE + _DOUBLING * tl.log2(tl.maximum(steps / _FINE, 1.0))
    steps = tl.minimum(tl.where(steps < _FINE, steps, far), _LEVELS // 2 - 1.0).to(tl.int32)
    return tl.where(distance >= 0, _LEVELS // 2 + steps, _LEVELS // 2 - 1 - steps)


@triton.jit
def middle_of(level):
    """Distance from the reference of a level's middle."""
    above = level >= _LEVELS // 2
    steps = tl.where(above, level - _LEVELS // 2, _LEVELS // 2 - 1 - level) + 0.5
    distance = tl.where(steps < _FINE, steps, _FINE * tl.exp2((steps - _FINE) / _DOUBLING)) / _PER_NAT
    return tl.where(above, distance, -distance)
