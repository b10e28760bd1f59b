"""Question (b): what the average size of a cluster costs and brings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import ClassVar

import torch

from tactic.kernels.estimators import ESTIMATORS, make_estimator
from tactic.kernels.index import CLUSTER_SIZES, DecodeOptions
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.cost import decode_ms
from tactic.workers.evaluation.analysis.question import CaptureQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Samples
from tactic.workers.evaluation.analysis.selection import IndexedStep, Outcome
from tactic.workers.evaluation.index import BuildIndex, Index
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

    def add(self, capture: Capture) -> None:
        """See `CaptureQuestion.add`."""
        options = DecodeOptions.create(1)
        for size in CLUSTER_SIZES:
            outcomes: dict[str, list[Outcome]] = {kind.name: [] for kind in ESTIMATORS}
            seconds, index_bytes, kv_bytes = 0.0, 0, 0
            for step in capture.layers:
                index, took = _timed_build(step, size)
                seconds += took
                index_bytes += index.arena.units * index.arena.bytes_per_unit
                kv_bytes += 2 * step.keys[: step.first].nbytes
                seen = IndexedStep(step, index.clusters, self.threshold)
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
            self._cost.add(
                capture.text,
                {"context": capture.context, "cluster size": size},
                {
                    "index MB": index_bytes / 1e6,
                    "index / KV": index_bytes / kv_bytes,
                    "build s": seconds,
                    **self._decode_times(capture.layers[len(capture.layers) // 2], size),
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
                f"estimate on the same order of clusters. {INTERVALS}",
                self._quality.rows(),
            ),
            Table(
                "Cost by cluster size",
                "What was asked: memory and building time of the index of all layers, and the time of one "
                f"decode step of a middle layer with `{name}`, beside the same code reading everything. "
                f"{INTERVALS}",
                self._cost.rows(),
            ),
        ]

    def _decode_times(self, step: Step, size: int) -> dict[str, float]:
        index = step.layer.structure(BuildIndex(size))
        device = step.keys.device

        def timed(*, dense: bool) -> float:
            options = DecodeOptions.create(
                1,
                threshold=self.threshold,
                estimator=self.estimator,
                dense=dense,
                device=device,
                sinks=step.layer.sinks,
            )
            return decode_ms(step, index, options)

        return {"decode ms": timed(dense=False), "dense ms": timed(dense=True)}


def _timed_build(step: Step, size: int) -> tuple[Index, float]:
    """A layer's index, and the seconds that it took."""
    cuda = step.keys.is_cuda
    if cuda:
        torch.cuda.synchronize()
    begin = perf_counter()
    index = BuildIndex(size)(step.layer)
    if cuda:
        torch.cuda.synchronize()
    return index, perf_counter() - begin
