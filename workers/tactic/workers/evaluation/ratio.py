"""Confidence intervals of ratios of means over contexts of several tasks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from tactic.workers.evaluation.analysis.interval import Interval, student_quantile


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], strata: Sequence[Hashable]
) -> Interval:
    """Σ numerators / Σ denominators, with its 95 % interval over contexts drawn anew within their tasks.

    The variance is that of the linearised ratio, taken within strata, as the mix of tasks is fixed; Student's
    t has as many degrees of freedom as contexts less strata. With ones as denominators this is a mean.

    Args:
        numerators: one of each context.
        denominators: one of each context, their sum positive.
        strata: the task of each context.

    Returns:
        The half width is None if a stratum has a single context.
    """
    above, below = np.asarray(numerators, float), np.asarray(denominators, float)
    ratio = float(above.sum() / below.sum())
    residuals = (above - ratio * below) / below.sum()
    groups = [residuals[[each == stratum for each in strata]] for stratum in dict.fromkeys(strata)]
    if min(map(len, groups)) < 2:
        return Interval(ratio, None)
    variance = sum(len(group) * group.var(ddof=1) for group in groups)
    return Interval(ratio, student_quantile(len(above) - len(groups)) * float(np.sqrt(variance)))
