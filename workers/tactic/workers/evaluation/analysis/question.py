"""A question that captures answer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.result import Table


class Question(ABC):
    """Looks at one capture after the other, then gives its tables."""

    name: ClassVar[str]

    @abstractmethod
    def add(self, capture: Capture) -> None:
        """Measures one context; only figures are kept."""

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """The answer so far; the first table is what the plot shows."""

    def data(self) -> dict[str, Any]:
        """What the plot needs beyond the tables."""
        return {}
