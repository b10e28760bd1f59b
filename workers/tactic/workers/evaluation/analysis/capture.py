"""Keys and queries of a prefilled checkpoint: all that the selection of a decode step depends on."""

from dataclasses import dataclass

from tactic.workers.evaluation.layer import Step


@dataclass(frozen=True)
class Capture:
    """Decode steps after one context.

    Attributes:
        text: what it is made of: the name of a task.
        context: length that was asked for, of prompt and answer.
        seed: that chose it.
        layers: the queries of all layers at the same positions, and the keys they see.
    """

    text: str
    context: int
    seed: int
    layers: tuple[Step, ...]
