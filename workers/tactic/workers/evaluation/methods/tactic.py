"""Tactic itself, by the definitions in `tactic.kernels`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators import Estimator, Evidence, Exact, estimator_id, make_estimator
from tactic.kernels.index import DecodeOptions
from tactic.kernels.ranking.naive import rank
from tactic.kernels.selection import select
from tactic.kernels.union.naive import NEARLY_ALL
from tactic.workers.evaluation.index import BuildIndex, Index
from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.methods.base import Method


@dataclass(frozen=True)
class Tactic(Method):
    """Whole clusters, as many as an estimator asks for.

    Attributes:
        threshold: P.
        estimator: one of `tactic.kernels.estimators.NAMES`.
        index: how the keys are clustered.
        options: settings of the estimators; threshold, estimator and sinks in it are not used.
    """

    name: ClassVar[str] = "tactic"
    threshold: float
    estimator: str = "fit"
    index: BuildIndex = field(default_factory=BuildIndex)
    options: DecodeOptions = field(default_factory=lambda: DecodeOptions.create(1))

    @property
    def label(self) -> str:
        """Name, grouping unless k-means, and estimator."""
        return f"{self.name}{'' if self.index.grouping == 'kmeans' else '-positional'}:{self.estimator}"

    def select(self, step: Step) -> Tensor:
        """See `Method.select`."""
        index = step.layer.structure(self.index)
        if index.clusters.length < max(self.options.min_clustered, step.layer.sinks + 1):
            return step.visible.expand(step.logits.shape)
        evidence, always = self._evidence(step, index)
        ranks = self._estimator().ranks(evidence, self.threshold)
        heads, group, m, _ = step.query.shape
        clusters = select(evidence.ranking, ranks).view(heads, group * m, -1)
        chosen = torch.nn.functional.pad(
            index.positions(clusters), (0, always.shape[0] - index.clusters.length), value=True
        )
        return chosen.view(heads, group, m, -1) & step.visible

    def read(self, step: Step, own: Tensor) -> Tensor:
        """See `Method.read`; where a head selects nearly everything, its group reads all, as in `unite`."""
        ranked = ~step.always(step.layer.structure(self.index).clusters.length)
        part, whole = NEARLY_ALL
        most = (own & ranked).sum(-1, keepdim=True).amax(1, keepdim=True)
        nearly_all = most * whole >= ranked.sum() * part
        return super().read(step, own) | (nearly_all & step.visible)

    def ideal(self, step: Step, threshold: float) -> Tensor | None:
        """See `Method.ideal`."""
        index = step.layer.structure(self.index)
        if index.clusters.length < max(self.options.min_clustered, step.layer.sinks + 1):
            return None
        evidence, always = self._evidence(step, index)
        ranks = Exact().ranks(evidence, threshold)
        return ranks.view(step.query.shape[:3]) + (always & step.visible).sum(-1)

    def _estimator(self) -> Estimator:
        return make_estimator(estimator_id(self.estimator), self.options)

    def _evidence(self, step: Step, index: Index) -> tuple[Evidence, Tensor]:
        """What an estimator is given for all queries at once, and the positions that are always read."""
        heads, group, m, dim = step.query.shape
        query = step.query.reshape(heads * group * m, dim)
        ranking = rank(query, index.clusters, by_weight=self._estimator().by_weight)
        always = step.always(index.clusters.length)
        attended = step.logits[..., always].logsumexp(-1).flatten()
        slot_ids = torch.arange(step.keys.shape[0], device=step.keys.device)
        return Evidence(ranking, step.keys, slot_ids, attended), always
