"""Methods that need no index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.weights import oracle_cut


@dataclass(frozen=True)
class Dense(Method):
    """Everything."""

    name: ClassVar[str] = "dense"

    def select(self, step: Step) -> Tensor:
        """See `Method.select`."""
        return step.visible.expand(step.logits.shape)


@dataclass(frozen=True)
class OracleTopP(Method):
    """The fewest positions whose true weights reach the threshold, of each query head."""

    name: ClassVar[str] = "oracle"
    threshold: float

    def select(self, step: Step) -> Tensor:
        """See `Method.select`."""
        shares = torch.exp(step.logits - step.total[..., None])
        return (shares >= oracle_cut(shares, self.threshold)) & step.visible
