"""Question (e): query heads of a group select differently, and the KV head reads the union."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators import Estimator, Evidence, make_estimator
from tactic.kernels.index import DecodeOptions
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.question import CaptureQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import Samples
from tactic.workers.evaluation.analysis.selection import IndexedStep, Outcome
from tactic.workers.evaluation.index import BuildIndex

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
        reads: dict[str, list[Tensor]] = {}
        outcomes: dict[str, list[Outcome]] = {}
        divergence: list[dict[str, float]] = []
        for step in capture.layers:
            heads, group, steps, _ = step.query.shape
            seen = IndexedStep(step, step.layer.structure(BuildIndex()).clusters, self.threshold)
            chosen = seen.choose(estimator).view(heads, group, steps, -1)
            sizes = seen.index.sizes[:, None]
            union = (chosen.any(1) * sizes).sum(-1)
            alone = (chosen * sizes[:, None]).sum(-1)
            read = (union + seen.always.view(heads, group, steps)[:, 0]) / step.visible.sum(-1)
            divergence.append(
                {
                    "jaccard": jaccard(chosen, sizes).mean().item(),
                    "selected": alone.double().mean().item(),
                    "union": union.double().mean().item(),
                    "inflation": inflation(chosen, sizes),
                    "read share": read.mean().item(),
                    "highest read share": read.max().item(),
                    "cases above half": (read > ALMOST_ALL).double().mean().item(),
                }
            )
            for rule, shared in self._shared(seen, estimator, chosen):
                everyone = shared[:, None].expand_as(chosen).flatten(0, 2)
                outcome = seen.outcome(everyone)
                outcomes.setdefault(rule, []).append(outcome)
                by_group = outcome.tokens.view(heads, group, steps)[:, 0]
                reads.setdefault(rule, []).append((by_group / step.visible.sum(-1)).flatten())
        names = ["all", *(str(step.layer.number) for step in capture.layers)]
        for layer, values in zip(names, [_mean(divergence), *divergence], strict=True):
            self._divergence.add({"context": capture.context, "layer": layer}, values)
        for rule, found in outcomes.items():
            read = torch.cat(reads[rule])
            summary = Outcome.cat(found).summary()
            condition: dict[str, Cell] = {"context": capture.context, "rule": rule}
            self._rules.add(
                condition,
                {
                    "read by the KV head": summary["tokens"],
                    "read share": read.mean().item(),
                    "highest read share": read.max().item(),
                    "success": summary["success"],
                    "share": summary["share"],
                    "share p5": summary["share p5"],
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
                "if they are disjoint; both without sinks and tail. Read share: of the visible positions, "
                "with them.",
                self._divergence.rows(),
            ),
            Table(
                "One cut for the whole group",
                "What was asked: what a KV head reads under the union of its query heads' selections, and "
                "under one order of clusters for the group: by the sum of its heads' estimated weights, cut "
                "where their mean reaches P; the same, cut where every head reaches P; by the highest of its "
                "heads' weights, cut where every head reaches P. Success and share are those of each query "
                "head over what its KV head reads.",
                self._rules.rows(),
            ),
        ]

    def _shared(
        self, seen: IndexedStep, estimator: Estimator, chosen: Tensor
    ) -> Iterator[tuple[str, Tensor]]:
        """Clusters `[H, m, K]` bool that each KV head reads, by rule."""
        shape = chosen.shape
        mass, attended = estimated_shares(seen.evidence, estimator)
        mass, attended = mass.view(shape), attended.view(shape[:3])
        sizes = seen.index.sizes[:, None]
        by_sum, by_max = mass.sum(1) / sizes.clamp(min=1), mass.amax(1) / sizes.clamp(min=1)
        yield "union", chosen.any(1)
        yield "sum, mean reaches P", cut(by_sum, mass.mean(1), attended.mean(1), self.threshold)
        yield "sum, every head reaches P", cut_for_all(by_sum, mass, attended, self.threshold)
        yield "max, every head reaches P", cut_for_all(by_max, mass, attended, self.threshold)


def _mean(layers: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the layers; of the highest the highest, of the inflation that of the sums."""
    values = {name: sum(layer[name] for layer in layers) / len(layers) for name in layers[0]}
    values["highest read share"] = max(layer["highest read share"] for layer in layers)
    values["inflation"] = values["union"] / values["selected"] if values["selected"] else 1.0
    return values


def jaccard(chosen: Tensor, sizes: Tensor) -> Tensor:
    """Mean over all pairs of heads of |both| / |either|, in positions; 1 where neither selects anything.

    Args:
        chosen: `[H, G, m, K]` bool.
        sizes: `[H, 1, K]` int64, members of each cluster.

    Returns:
        `[H, m]` fp32; 1 if G = 1.
    """
    values = []
    for i, j in combinations(range(chosen.shape[1]), 2):
        both = ((chosen[:, i] & chosen[:, j]) * sizes).sum(-1)
        either = ((chosen[:, i] | chosen[:, j]) * sizes).sum(-1)
        values.append(torch.where(either > 0, both / either.clamp(min=1), 1.0))
    if not values:
        return torch.ones(chosen.shape[0], chosen.shape[2], device=chosen.device)
    return torch.stack(values).mean(0)


def inflation(chosen: Tensor, sizes: Tensor) -> float:
    """Positions in the unions / mean positions in the heads' selections; arguments as for `jaccard`."""
    union = (chosen.any(1) * sizes).sum().item()
    alone = (chosen * sizes[:, None]).sum().item() / chosen.shape[1]
    return union / alone if alone else 1.0


def estimated_shares(evidence: Evidence, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """Estimated share of each cluster, `[R, K]`, and of sinks and tail, `[R]`; together they are 1."""
    log_mass = estimator.log_mass(evidence)
    total = torch.logaddexp(log_mass[:, -1], evidence.attended)
    cumulative = torch.exp(log_mass - total[:, None])
    mass = torch.nn.functional.pad(cumulative, (1, 0)).diff(dim=-1).clamp(min=0)
    by_cluster = torch.zeros_like(mass).scatter_(1, evidence.ranking.order, mass)
    return by_cluster, torch.exp(evidence.attended - total)


def cut(score: Tensor, mass: Tensor, attended: Tensor, threshold: float) -> Tensor:
    """The fewest clusters in descending order of score that hold the threshold, with what is attended anyway.

    Args:
        score: `[H, m, K]`.
        mass: `[H, m, K]`, share of each cluster.
        attended: `[H, m]`, share of what is read anyway.
        threshold: P.

    Returns:
        `[H, m, K]` bool.
    """
    order = score.argsort(-1, descending=True)
    before = mass.gather(-1, order).cumsum(-1) - mass.gather(-1, order) + attended[..., None]
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, before < threshold)


def cut_for_all(score: Tensor, mass: Tensor, attended: Tensor, threshold: float) -> Tensor:
    """As `cut`, but so that each head of the group, `mass` `[H, G, m, K]`, reaches the threshold."""
    needed = [cut(score, mass[:, head], attended[:, head], threshold) for head in range(mass.shape[1])]
    return torch.stack(needed).any(0)
