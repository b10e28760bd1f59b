"""Methods by name."""

from __future__ import annotations

from collections.abc import Sequence

from tactic.kernels.estimators import NAMES
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.methods.budgeted import Budgeted, Quest, TopK, Window
from tactic.workers.evaluation.methods.plain import Dense, OracleTopP
from tactic.workers.evaluation.methods.tactic import Tactic

BUDGETED: dict[str, type[Budgeted]] = {kind.name: kind for kind in (Quest, Window, TopK)}
SERVED = NAMES[int(DecodeOptions.create(1).estimator)]
"""What the product estimates with unless told otherwise."""
METHODS = (
    Dense.name,
    OracleTopP.name,
    *(f"tactic:{name}" for name in NAMES),
    *(f"tactic-positional:{name}" for name in NAMES),
    *BUDGETED,
)


def make_method(
    name: str, threshold: float, *, budgets: Sequence[int] = (), index: BuildIndex | None = None
) -> Method:
    """The method of a name.

    Args:
        name: one of `METHODS`.
        threshold: P, for the methods that have one.
        budgets: positions per KV head for each layer, for those that read a fixed number.
        index: how Tactic clusters the keys; "tactic-positional" takes all of it but the grouping.

    Raises:
        EvaluationError: there is no such method.
    """
    index = index or BuildIndex()
    if name == Dense.name:
        return Dense()
    if name == OracleTopP.name:
        return OracleTopP(threshold)
    if name in BUDGETED:
        return BUDGETED[name](tuple(budgets))
    kind, _, estimator = name.partition(":")
    if name not in METHODS:
        raise EvaluationError(f"--methods {name} is unknown, use some of {', '.join(METHODS)}")
    if kind == "tactic-positional":
        index = BuildIndex(index.cluster_size, index.segment_size, "positional")
    return Tactic(threshold, estimator, index)
