"""What a question is to the sub-commands."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.result import Table
from tactic.workers.evaluation.context import Context


class Answer(ABC):
    """What has been found out so far."""

    name: ClassVar[str]
    """Of the sub-command and the result files."""

    @abstractmethod
    def tables(self) -> Sequence[Table]:
        """The figures; the first table is what the plot shows."""

    def data(self) -> dict[str, Any]:
        """What the plot needs beyond the tables."""
        return {}


class CaptureQuestion(Answer):
    """A question that looks at one capture after the other."""

    @abstractmethod
    def add(self, capture: Capture) -> None:
        """Measures one context; only figures are kept."""


class ContinuationQuestion(Answer):
    """A question that lets methods continue one text after the other."""

    @abstractmethod
    def add(self, context: Context, continuation: Sequence[int]) -> None:
        """Runs over one text; `continuation` follows the prompt that `context` holds."""
