"""Question (g): what the settings of the method change."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from tactic.kernels.estimators import Estimator, Fit, make_estimator
from tactic.kernels.index import DecodeOptions, RequestIndex
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.question import CaptureQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Samples
from tactic.workers.evaluation.analysis.selection import IndexedStep, Outcome
from tactic.workers.evaluation.index import BuildIndex

WINDOWS = ((0.05, 0.5), (0.1, 0.3), (0.1, 0.6), (0.2, 0.8))
WINDOW_LENGTHS = (16, 32, 64, 128)
EXACT_FRACTIONS = (0.005, 0.01, 0.02, 0.04)
SINKS = (0, 4, 16, 64)
DEFAULT_SINKS = 16


@dataclass(frozen=True)
class _Variant:
    setting: str
    value: str
    estimator: Estimator
    sinks: int = DEFAULT_SINKS


@dataclass
class Sensitivity(CaptureQuestion):
    """One setting at a time is moved away from its default.

    Attributes:
        threshold: P.
        estimator: id of the one for which sinks are varied; the other settings are `fit`'s.
    """

    name: ClassVar[str] = "sensitivity"
    threshold: float
    estimator: int
    _samples: Samples = field(default_factory=Samples)

    def add(self, capture: Capture) -> None:
        """See `CaptureQuestion.add`."""
        variants = list(self._variants())
        outcomes: dict[_Variant, list[Outcome]] = {variant: [] for variant in variants}
        for step in capture.layers:
            index = step.layer.structure(BuildIndex())
            for sinks in SINKS:
                seen = IndexedStep(
                    step, RequestIndex.gather(index.arena, index.table, 0, sinks=sinks), self.threshold
                )
                for variant in variants:
                    if variant.sinks == sinks:
                        outcomes[variant].append(seen.outcome(seen.choose(variant.estimator)))
        for variant, found in outcomes.items():
            condition: dict[str, Cell] = {
                "setting": variant.setting,
                "value": variant.value,
                "context": capture.context,
            }
            self._samples.add(capture.text, condition, Outcome.cat(found).summary())

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        note = (
            f"What was asked: how much each setting matters at P = {self.threshold}, the others at their "
            f"defaults (windows {Fit.windows}, {Fit.window} ranks each, exact prefix {Fit.exact_fraction}, "
            f"{DEFAULT_SINKS} sinks). Tokens are per query head; success is the share of cases that reach P. "
            f"{INTERVALS}"
        )
        return [Table("Sensitivity to the settings", note, self._samples.rows())]

    def _variants(self) -> Iterator[_Variant]:
        for windows in WINDOWS:
            shown = " and ".join(f"{at:.0%}" for at in windows)
            yield _Variant("fit: windows at", shown, Fit(windows=windows))
        for length in WINDOW_LENGTHS:
            yield _Variant("fit: ranks in a window", str(length), Fit(window=length))
        for fraction in EXACT_FRACTIONS:
            yield _Variant("fit: exact prefix", f"{fraction:.1%}", Fit(exact_fraction=fraction))
        estimator = make_estimator(self.estimator, DecodeOptions.create(1))
        for sinks in SINKS:
            yield _Variant(f"{estimator.name}: sinks", str(sinks), estimator, sinks)
