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
from tactic.workers.evaluation.layer import Step


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
        """Times the middle layer; its indexes are there already, so nothing is compiled meanwhile."""
        step = capture.layers[len(capture.layers) // 2]
        dense = self._decode_ms(step, CLUSTER_SIZES[0], dense=True)
        for size in CLUSTER_SIZES:
            build = BuildIndex(size)
            arena = step.layer.structure(build).arena
            index_bytes = arena.units * arena.bytes_per_unit
            self._cost.add(
                capture.text,
                {"context": capture.context, "cluster size": size},
                {
                    "index MB": index_bytes / 1e6,
                    "index / KV": index_bytes / (2 * step.layer.keys.nbytes),
                    "build ms": median_ms(partial(build, step.layer), cuda=step.keys.is_cuda, repeats=2),
                    "decode ms": self._decode_ms(step, size, dense=False),
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
                "What was asked: memory and building time of the index of one layer, and the time of one "
                f"decode step in it with `{name}`, beside the same code reading everything (dense). The "
                f"layer is the middle one, the text is {self._timed_text}. "
                f"{INTERVALS}",
                self._cost.rows(),
            ),
        ]

    def _decode_ms(self, step: Step, size: int, *, dense: bool) -> float:
        options = DecodeOptions.create(
            1,
            threshold=self.threshold,
            estimator=self.estimator,
            dense=dense,
            device=step.keys.device,
            sinks=step.layer.sinks,
        )
        return decode_ms(step, step.layer.structure(BuildIndex(size)), options)
