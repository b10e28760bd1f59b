"""What a method is: which positions each query head selects."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from tactic.workers.evaluation.layer import Step


class Method(ABC):
    """Chooses what decode attention reads."""

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """Name with settings, unique among the methods of a run."""
        return self.name

    @abstractmethod
    def select(self, step: Step) -> Tensor:
        """Positions that each query head selects, `[H, G, m, n]` bool, all of them visible ones.

        A method that decides for a whole group returns the same for all of its heads (an expanded view).
        """

    def read(self, step: Step, own: Tensor) -> Tensor:
        """Positions that KV heads read, `[H, 1, m, n]` bool: what any head of a group selected in `own`."""
        return own.any(1, keepdim=True)

    def ideal(self, step: Step, threshold: float) -> Tensor | None:
        """Positions each query head would select with a perfect estimate on this method's own order.

        Returns:
            `[H, G, m]` int64 counts, sinks and tail included; None where a method estimates nothing.
        """
        return None
