"""Estimators of cumulative attention weight, by name and by the id that device arrays carry."""

from tactic.kernels.estimators.base import Estimator, Evidence, position_logits
from tactic.kernels.estimators.centroid import Centroid
from tactic.kernels.estimators.exact import Exact
from tactic.kernels.estimators.fit import Fit
from tactic.kernels.estimators.guarded import Guarded
from tactic.kernels.index.options import DecodeOptions

ESTIMATORS: tuple[type[Estimator], ...] = (Fit, Centroid, Exact, Guarded)  # the id is the place: append only
NAMES = tuple(kind.name for kind in ESTIMATORS)


def estimator_id(name: str) -> int:
    """The id of an estimator.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in NAMES:
        raise ValueError(f"estimator={name!r} is unknown, use one of {', '.join(NAMES)}")
    return NAMES.index(name)


def make_estimator(identifier: int, options: DecodeOptions) -> Estimator:
    """The estimator of an id, with the settings in `options`.

    Raises:
        ValueError: there is none of that id.
    """
    if not 0 <= identifier < len(ESTIMATORS):
        raise ValueError(f"estimator id {identifier} is outside 0 … {len(ESTIMATORS) - 1}")
    return ESTIMATORS[identifier].from_options(options)


__all__ = [
    "ESTIMATORS",
    "NAMES",
    "Centroid",
    "Estimator",
    "Evidence",
    "Exact",
    "Fit",
    "Guarded",
    "estimator_id",
    "make_estimator",
    "position_logits",
]
