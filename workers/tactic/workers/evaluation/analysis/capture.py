"""Keys and queries of a prefilled checkpoint: all that the selection of a decode step depends on."""

from dataclasses import dataclass

from tactic.workers.evaluation.layer import Step


@dataclass(frozen=True)
class Capture:
    """Decode steps after one context.

    Attributes:
        text: what the context is made of, e.g. the name of a book.
        seed: that chose it.
        layers: the queries of all layers at the same positions, and the keys they see.
    """

    text: str
    seed: int
    layers: tuple[Step, ...]

    @property
    def context(self) -> int:
        """Positions before the first query: what is clustered."""
        return self.layers[0].first
