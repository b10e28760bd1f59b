from collections.abc import Callable, Sequence

import pytest
import torch

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.fit import GRID, FitQuality
from tactic.workers.evaluation.analysis.interval import Interval
from tactic.workers.evaluation.analysis.kinds import KINDS, classify
from tactic.workers.evaluation.analysis.result import Row
from tactic.workers.evaluation.layer import Step

RANKS = torch.arange(1, 1001).float()


def mean(cell: object) -> float:
    assert isinstance(cell, Interval)
    return cell.mean


def ask(capture: Capture) -> tuple[FitQuality, Sequence[Row]]:
    question = FitQuality(0.9)
    question.add(capture)
    return question, question.tables()[0].rows


@pytest.mark.parametrize(
    ("weights", "kind"),
    [
        (torch.ones(1000), "near-uniform"),
        (torch.where(RANKS <= 20, 1.0, 1e-4), "sharp"),
        (1 / RANKS, "falling"),
        (torch.where((RANKS > 600) & (RANKS <= 650), 0.1, 1 / RANKS), "multi-modal"),
    ],
)
def test_kinds(weights: torch.Tensor, kind: str) -> None:
    ranked = (weights / weights.sum())[None]
    sums = ranked.sort(descending=True).values.cumsum(-1)
    oracle = (sums < 0.8).sum(-1) + 1
    found = classify(ranked, oracle, torch.tensor([1000]), ranked[:, :20].sum(-1), 0.8)
    assert KINDS[int(found)] == kind


def test_uniform_weights_are_estimated_without_error(make_step: Callable[..., Step]) -> None:
    keys = torch.randn(2050, 2, 16, generator=torch.Generator().manual_seed(0))
    _, rows = ask(Capture("noise", 2048, 0, (make_step(keys, torch.zeros(2, 3, 2, 16)),)))
    assert [row["kind"] for row in rows] == ["all", "near-uniform"]
    for row in rows:
        assert mean(row["portion"]) == 1
        assert mean(row["total"]) == pytest.approx(1, abs=1e-4)
        assert mean(row["residual"]) == pytest.approx(0, abs=1e-4)
        assert mean(row["tokens / perfect"]) == pytest.approx(1, abs=0.02)


def test_figures_and_curves_by_kind(capture: Capture) -> None:
    question, rows = ask(capture)
    assert rows[0]["kind"] == "all"
    assert sum(mean(row["portion"]) for row in rows[1:]) == pytest.approx(1)
    for name in ("flat", "ends early", "all read", "success"):
        assert 0 <= mean(rows[0][name]) <= 1
    curves = question.data()["residuals"]
    assert [curve["kind"] for curve in curves] == [row["kind"] for row in rows]
    for curve in curves:
        assert len(curve["mean"]) == len(curve["p10"]) == len(GRID)
        assert curve["mean"][-1] == pytest.approx(0, abs=1e-5), "all ranks hold all the weight"
