"""Question (b): what the average size of a cluster costs and brings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from tactic.kernels.estimators import ESTIMATORS, make_estimator
from tactic.kernels.index import CLUSTER_SIZES, DecodeOptions
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.cost import decode_ms, median_ms
from tactic.workers.evaluation.analysis.question import CaptureQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Samples
from tactic.workers.evaluation.analysis.selection import IndexedStep, Outcome
from tactic.workers.evaluation.index import BuildIndex


@dataclass
class ClusterSize(CaptureQuestion):
    """Selection quality by estimator, and what the index and a decode step cost.

    Attributes:
        threshold: P.
        estimator: id of the one whose decode step is timed.
    """

    name: ClassVar[str] = "cluster-size"
    threshold: float
    estimator: int
    _quality: Samples = field(default_factory=Samples)
    _cost: Samples = field(default_factory=Samples)
    _timed_text: str | None = None

    def add(self, capture: Capture) -> None:
        """See `CaptureQuestion.add`."""
        options = DecodeOptions.create(1)
        for size in CLUSTER_SIZES:
            outcomes: dict[str, list[Outcome]] = {kind.name: [] for kind in ESTIMATORS}
            for step in capture.layers:
                seen = IndexedStep(step, step.layer.structure(BuildIndex(size)).clusters, self.threshold)
                for number, kind in enumerate(ESTIMATORS):
                    chosen = seen.choose(make_estimator(number, options))
                    outcomes[kind.name].append(seen.outcome(chosen))
            for name, found in outcomes.items():
                condition: dict[str, Cell] = {
                    "context": capture.context,
                    "cluster size": size,
                    "estimator": name,
                }
                self._quality.add(capture.text, condition, Outcome.cat(found).summary())
        self._timed_text = self._timed_text or capture.text
        if capture.text == self._timed_text:
            self._add_cost(capture)

    def _add_cost(self, capture: Capture) -> None:
        """Takes the times; all indexes are there already, so that nothing is compiled meanwhile."""
        layer = capture.layers[len(capture.layers) // 2].layer
        dense = self._decode_ms(capture, CLUSTER_SIZES[0], dense=True)
        for size in CLUSTER_SIZES:
            build = BuildIndex(size)
            arena = layer.structure(build).arena
            index_bytes = arena.units * arena.bytes_per_unit
            self._cost.add(
                capture.text,
                {"context": capture.context, "cluster size": size},
                {
                    "index MB": index_bytes / 1e6,
                    "index / KV": index_bytes / (2 * layer.keys.nbytes),
                    "build ms": median_ms(partial(build, layer), cuda=layer.keys.is_cuda, repeats=2),
                    "decode ms": self._decode_ms(capture, size, dense=False),
                    "dense ms": dense,
                },
            )

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        name = ESTIMATORS[self.estimator].name
        return [
            Table(
                "Selection by cluster size",
                f"What was asked: how many positions each query head selects to reach P = {self.threshold}, "
                "beside the fewest that hold it (oracle), and how often it does. `exact` is a perfect "
                f"estimate on the order of clusters by q·centroid. {INTERVALS}",
                self._quality.rows(),
            ),
            Table(
                "Cost by cluster size",
                "What was asked: memory and building time of the index of one layer (the middle one), and "
                f"the time of a decode step in one layer with `{name}`, beside the same code reading "
                f"everything (dense); means of the layers. The text is {self._timed_text}. "
                f"{INTERVALS}",
                self._cost.rows(),
            ),
        ]

    def _decode_ms(self, capture: Capture, size: int, *, dense: bool) -> float:
        first = capture.layers[0]
        options = DecodeOptions.create(
            1,
            threshold=self.threshold,
            estimator=self.estimator,
            dense=dense,
            device=first.keys.device,
            sinks=first.layer.sinks,
        )
        indexes = [step.layer.structure(BuildIndex(size)) for step in capture.layers]
        return decode_ms(capture.layers, indexes, options)
