# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Levels of scores on the device; see `levels.py`."""

import triton
import triton.language as tl

from tactic.kernels.ranking import levels

_LEVELS = tl.constexpr(levels.LEVELS)
_SHIFT = tl.constexpr(levels.SHIFT)
_DROPPED = tl.constexpr(levels.DROPPED)
_FIRST = tl.constexpr(levels.FIRST)
_HALF = tl.constexpr(1 << levels.DROPPED - 1)


@triton.jit
def level_of(distance):
    """Level int32 of a score at a distance from the reference."""
    steps = ((tl.abs(distance) + _SHIFT).to(tl.int32, bitcast=True) >> _DROPPED) - _FIRST
    steps = tl.minimum(steps, _LEVELS // 2 - 1)
    return tl.where(distance >= 0, _LEVELS // 2 + steps, _LEVELS // 2 - 1 - steps)


@triton.jit
def middle_of(level):
    """Distance from the reference of a level's middle."""
    above = level >= _LEVELS // 2
    steps = tl.where(above, level - _LEVELS // 2, _LEVELS // 2 - 1 - level)
    distance = (((steps + _FIRST) << _DROPPED) + _HALF).to(tl.float32, bitcast=True) - _SHIFT
    return tl.where(above, distance, -distance)
