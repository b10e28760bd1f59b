"""Question (c): how well y = a/x + b follows the true weights, and where it does not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor

from tactic.kernels.estimators import Evidence, Exact, Fit
from tactic.kernels.estimators.fit import fit_curve
from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.kinds import KINDS, classify
from tactic.workers.evaluation.analysis.question import CaptureQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Ratio, Samples
from tactic.workers.evaluation.analysis.selection import ROUNDING, IndexedStep, quantile
from tactic.workers.evaluation.index import BuildIndex

GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Ranks at which the curves are compared, as shares of all ranks."""


@dataclass(frozen=True)
class _Probe(Fit):
    """The estimator, with its coefficients shown."""

    def coefficients(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """The curve's a and b, `[R]` each, in units of each row's highest sampled weight."""
        n = evidence.ranking.index.ranks
        exact = ceil(self.exact_fraction * n)
        ranks, centres = self._sampled_ranks(n, exact, evidence.attended.device)
        logits = evidence.logits(ranks)
        weights = torch.exp(logits - logits.amax(-1, keepdim=True))
        m1, m2 = weights[:, exact:].view(-1, 2, self.window).mean(-1).unbind(1)
        return fit_curve(m1, m2, *centres)


@dataclass(frozen=True)
class _Cases:
    """Figures of R cases; booleans and shares as fp32."""

    kind: Tensor
    residual: Tensor
    total: Tensor
    cut_error: Tensor
    success: Tensor
    tokens: Tensor
    perfect: Tensor
    flat: Tensor
    ends_early: Tensor
    reads_all: Tensor

    def where(self, chosen: Tensor) -> "_Cases":
        return _Cases(*(value[chosen] for value in vars(self).values()))


@dataclass
class FitQuality(CaptureQuestion):
    """Estimated against true cumulative share, by kind of head.

    Attributes:
        threshold: P.
    """

    name: ClassVar[str] = "fit"
    threshold: float
    _samples: Samples = field(default_factory=Samples)
    _residuals: dict[tuple[int, str], list[Tensor]] = field(default_factory=dict)

    def add(self, capture: Capture) -> None:
        """See `CaptureQuestion.add`."""
        found = [
            self._cases(IndexedStep(step, step.layer.structure(BuildIndex()).clusters, self.threshold))
            for step in capture.layers
        ]
        cases = _Cases(
            *(torch.cat(values) for values in zip(*(vars(one).values() for one in found), strict=True))
        )
        everything = torch.ones_like(cases.kind, dtype=torch.bool)
        for name, chosen in [
            ("all", everything),
            *((kind, cases.kind == number) for number, kind in enumerate(KINDS)),
        ]:
            if chosen.any():
                self._add(capture, name, cases.where(chosen), chosen.double().mean().item())

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        return [
            Table(
                "The fitted curve against the true weights",
                f"What was asked: how far the estimate of `fit` is from the truth at P = {self.threshold}, "
                "by kind of case (query, layer, head); kinds are defined in `kinds.classify`. Total: "
                "estimated / true weight of all ranks (geometric mean). Residual: estimated less true "
                "cumulative share, mean of the absolute values over the ranks beyond the exact prefix. At "
                "the cut: true share less the estimated one where the selection ends. Tokens / perfect: "
                "selected, beside a perfect estimate on the same order. Fallbacks: flat: a would be negative "
                "and is 0; ends early: b is negative and the curve 0 from its root on; all read: nothing is "
                f"left out. {INTERVALS}",
                self._samples.rows(),
            )
        ]

    def data(self) -> dict[str, Any]:
        """Residuals along the ranks: mean, 10 % and 90 % quantile, by context and kind."""
        curves = []
        for (context, kind), parts in self._residuals.items():
            values = torch.cat(parts)
            curves.append(
                {
                    "context": context,
                    "kind": kind,
                    "mean": values.mean(0).tolist(),
                    "p10": [quantile(column, 0.1) for column in values.unbind(1)],
                    "p90": [quantile(column, 0.9) for column in values.unbind(1)],
                }
            )
        return {"rank shares": GRID, "residuals": curves}

    def _cases(self, seen: IndexedStep) -> _Cases:
        fit = _Probe()
        evidence = seen.evidence(fit)
        ranking, n = evidence.ranking, seen.index.ranks
        estimated, true = fit.log_mass(evidence), Exact().log_mass(evidence)
        ranks = fit.ranks(evidence, self.threshold)
        seen_share, true_share = (_shares(curve, evidence.attended) for curve in (estimated, true))
        end = torch.where(ranks > 0, torch.searchsorted(ranking.ends, ranks[:, None]).squeeze(-1) + 1, 0)
        at_cut = true_share.gather(1, end[:, None]).squeeze(1)
        grid = torch.tensor([max(1, round(share * n)) for share in GRID], device=ranks.device)
        places = torch.searchsorted(ranking.ends, grid.expand(len(ranks), -1).contiguous()) + 1
        ranked = seen.weights.gather(1, ranking.positions(torch.arange(n, device=ranks.device)))
        prefix = seen.always_share + ranked[:, : ceil(fit.exact_fraction * n)].sum(-1)
        a, b = fit.coefficients(evidence)
        return _Cases(
            kind=classify(ranked, seen.oracle, seen.always + n, prefix, self.threshold),
            residual=seen_share.gather(1, places) - true_share.gather(1, places),
            total=estimated[:, -1] - true[:, -1],
            cut_error=at_cut - seen_share.gather(1, end[:, None]).squeeze(1),
            success=(at_cut >= self.threshold - ROUNDING).float(),
            tokens=(ranks + seen.always).float(),
            perfect=(Exact().ranks(evidence, self.threshold) + seen.always).float(),
            flat=(a == 0).float(),
            ends_early=(b < 0).float(),
            reads_all=(ranks == n).float(),
        )

    def _add(self, capture: Capture, kind: str, cases: _Cases, portion: float) -> None:
        self._residuals.setdefault((capture.context, kind), []).append(cases.residual.cpu())
        condition: dict[str, Cell] = {"context": capture.context, "kind": kind}
        beyond = cases.residual[:, [share > Fit.exact_fraction for share in GRID]]
        self._samples.add(
            capture.text,
            condition,
            {
                "portion": portion,
                "total": cases.total.mean().exp().item(),
                "residual": beyond.abs().mean().item(),
                "at the cut": cases.cut_error.mean().item(),
                "success": cases.success.mean().item(),
                "tokens / perfect": Ratio(cases.tokens.mean().item(), cases.perfect.mean().item()),
                "flat": cases.flat.mean().item(),
                "ends early": cases.ends_early.mean().item(),
                "all read": cases.reads_all.mean().item(),
            },
        )


def _shares(log_mass: Tensor, attended: Tensor) -> Tensor:
    """Cumulative share after 0 … K clusters, `[R, K + 1]`, with what is attended anyway."""
    total = torch.logaddexp(log_mass[:, -1], attended)
    held = torch.cat([attended[:, None], torch.logaddexp(log_mass, attended[:, None])], 1)
    return torch.exp(held - total[:, None])
