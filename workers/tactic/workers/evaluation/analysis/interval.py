"""Means with their 95 % confidence intervals."""

from typing import NamedTuple

# 97.5 % quantiles of Student's t for 1 … 30 degrees of freedom; beyond, `_NORMAL + _SLOPE / freedom`.
_STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
_NORMAL, _SLOPE = 1.960, 2.372


class Interval(NamedTuple):
    """A mean and the half width of its 95 % interval where it can be told."""

    mean: float
    half_width: float | None


def student_quantile(freedom: int) -> float:
    """97.5 % quantile of Student's t with so many degrees of freedom, at least 1."""
    return _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _NORMAL + _SLOPE / freedom
