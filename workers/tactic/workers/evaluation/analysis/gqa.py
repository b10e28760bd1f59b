"""Question (e): query heads of a group select differently, and the KV head reads the union."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators import Estimator, make_estimator
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.groups import cut, cut_for_all, estimated_shares, jaccard
from tactic.workers.evaluation.analysis.question import CaptureQuestion
from tactic.workers.evaluation.analysis.result import Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Ratio, Samples
from tactic.workers.evaluation.analysis.selection import IndexedStep, Outcome
from tactic.workers.evaluation.index import BuildIndex

UNION = "union"
ALMOST_ALL = 0.5
"""A KV head that reads more than this share of what is visible gains little from selecting."""


@dataclass
class GroupedQueries(CaptureQuestion):
    """Divergence inside a group, and what one shared cut would read instead.

    Attributes:
        threshold: P.
        estimator: id of the one that selects.
    """

    name: ClassVar[str] = "gqa"
    threshold: float
    estimator: int
    _divergence: Samples = field(default_factory=Samples)
    _rules: Samples = field(default_factory=Samples)

    def add(self, capture: Capture) -> None:
        """See `CaptureQuestion.add`."""
        estimator = make_estimator(self.estimator, DecodeOptions.create(1))
        divergence: list[dict[str, float]] = []
        outcomes: dict[str, list[Outcome]] = {}
        read_shares: dict[str, list[Tensor]] = {}
        for step in capture.layers:
            seen = IndexedStep(step, step.layer.structure(BuildIndex()).clusters, self.threshold)
            chosen = seen.choose(estimator).view(*step.query.shape[:3], -1)
            for rule, shared in self._rules_of(seen, estimator, chosen):
                outcome = seen.outcome(shared[:, None].expand_as(chosen).flatten(0, 2))
                outcomes.setdefault(rule, []).append(outcome)
                read = outcome.tokens.view(chosen.shape[:3])[:, 0] / step.visible.sum(-1)
                read_shares.setdefault(rule, []).append(read.flatten())
            divergence.append(_divergence_of(chosen, seen.index.sizes[:, None], read_shares[UNION][-1]))

        everywhere = {
            name: sum(layer[name] for layer in divergence) / len(divergence) for name in divergence[0]
        }
        layers = {"all": everywhere}
        layers |= {str(step.layer.number): one for step, one in zip(capture.layers, divergence, strict=True)}
        for name, values in layers.items():
            self._divergence.add(
                capture.text,
                {"context": capture.context, "layer": name},
                {**values, "inflation": _inflation(values)},
            )
        for rule, found in outcomes.items():
            read, summary = torch.cat(read_shares[rule]), Outcome.cat(found).summary()
            self._rules.add(
                capture.text,
                {"context": capture.context, "rule": rule},
                {
                    "read": summary["tokens"],
                    "read share": read.mean().item(),
                    f"reads over {ALMOST_ALL:.0%}": (read > ALMOST_ALL).double().mean().item(),
                    **{name: summary[name] for name in ("success", "share", "share p5")},
                },
            )

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        return [
            Table(
                "Divergence inside a group",
                f"What was asked: how far the selections of query heads that share a KV head differ at P = "
                f"{self.threshold}. Jaccard: positions that two heads both select / that either selects, "
                "mean of all pairs; inflation: union / mean selection, 1 if they agree and the group's size "
                "if they are disjoint; all of these without sinks and tail. Read share: of the visible "
                f"positions, with sinks and tail. {INTERVALS}",
                self._divergence.rows(),
            ),
            Table(
                "One cut for the whole group",
                "What was asked: what a KV head reads under the union of its query heads' selections, and "
                "under one order of clusters for the group: by the sum of its heads' estimated weights, cut "
                "where their mean reaches what the estimator aims at; the same, cut where every head does; "
                "by the highest of its heads' weights, cut where every head does. (An estimator's least "
                "number of positions holds for the union alone.) Success and share are those of each query "
                f"head over what its KV head reads. {INTERVALS}",
                self._rules.rows(),
            ),
        ]

    def _rules_of(
        self, seen: IndexedStep, estimator: Estimator, chosen: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Clusters `[H, m, K]` bool that each KV head reads, by rule."""
        evidence = seen.evidence(estimator)
        mass, attended = estimated_shares(evidence, estimator)
        target = estimator.target(evidence, self.threshold).view(chosen.shape[:3])
        mass, attended = mass.view(chosen.shape), attended.view(chosen.shape[:3])
        sizes = seen.index.sizes[:, None].clamp(min=1)
        by_sum, by_max = mass.sum(1) / sizes, mass.amax(1) / sizes
        yield UNION, chosen.any(1)
        yield "sum, mean reaches P", cut(by_sum, mass.mean(1), attended.mean(1), target.mean(1))
        yield "sum, every head reaches P", cut_for_all(by_sum, mass, attended, target)
        yield "max, every head reaches P", cut_for_all(by_max, mass, attended, target)


def _divergence_of(chosen: Tensor, sizes: Tensor, read_share: Tensor) -> dict[str, float]:
    """Figures of one layer; `chosen` and `sizes` as for `jaccard`, `read_share` of the cases, flat."""
    return {
        "jaccard": jaccard(chosen, sizes).mean().item(),
        "selected": (chosen * sizes[:, None]).sum(-1).double().mean().item(),
        "union": (chosen.any(1) * sizes).sum(-1).double().mean().item(),
        "read share": read_share.mean().item(),
        "highest read share": read_share.max().item(),
        f"reads over {ALMOST_ALL:.0%}": (read_share > ALMOST_ALL).double().mean().item(),
    }


def _inflation(values: dict[str, float]) -> Ratio:
    """Union beside selection; 1 where sinks and tail are enough for all, and nothing is selected."""
    return Ratio(values["union"], values["selected"]) if values["selected"] else Ratio(1.0, 1.0)
