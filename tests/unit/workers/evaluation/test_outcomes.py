import json
import operator
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tactic.workers.evaluation import accuracy
from tactic.workers.evaluation.analysis.interval import Interval, student_quantile
from tactic.workers.evaluation.calibrate import Candidate, candidates, choose
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.figures import Figures
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.outcome import Outcome, Plan
from tactic.workers.evaluation.progress import Progress
from tactic.workers.evaluation.ratio import ratio_interval
from tactic.workers.evaluation.tables import all_tables, comparisons
from tactic.workers.evaluation.tasks.prompt import PromptBuilder

METHODS = ["tactic:fit", "quest", "window", "topk", "oracle"]


def outcome(
    method: str, score: float | None, *, loss: float | None = None, task: str = "vt", seed: int = 0
) -> Outcome:
    figures = Figures(100.0, 10.0, 20.0, 0.9, 0.95, 0.8, 0.5, 5.0, None, {})
    threshold = None if method == "dense" else 0.9
    return Outcome(task, 4096, seed, method, threshold, score, loss, "", figures)


@pytest.fixture(scope="module")
def outcomes(checkpoint: Checkpoint, ruler: PromptBuilder) -> list[Outcome]:
    plan = Plan(METHODS, [0.7])
    found: list[Outcome] = []
    for task in ("niah_single_2", "perplexity"):
        sample = ruler.sample(task, 1900, 0, 0)
        found += plan.run(checkpoint, sample, context=1900, seed=0)
    return found


def test_dense_comes_first_and_each_method_runs_once(outcomes: list[Outcome]) -> None:
    order = ["dense", "tactic:fit", "oracle", "quest", "window", "topk"]
    assert [each.method for each in outcomes] == order * 2
    assert outcomes[0].figures.read == outcomes[0].figures.visible


def test_budgets_match_what_tactic_read(outcomes: list[Outcome]) -> None:
    for run in (outcomes[:6], outcomes[6:]):
        read = {each.method: each.figures.read for each in run}
        assert read["window"] == pytest.approx(read["tactic:fit"], abs=1)
        assert read["topk"] == pytest.approx(read["tactic:fit"], abs=1)
        assert read["quest"] == pytest.approx(read["tactic:fit"], abs=8)


def test_only_methods_that_estimate_are_measured_against_the_oracle(outcomes: list[Outcome]) -> None:
    for each in outcomes:
        measured = each.method == "tactic:fit"
        assert (each.figures.oracle is not None) == measured
        assert bool(each.figures.heads) == measured
        assert (each.score is None) == (each.task == "perplexity") == (each.loss is not None)
    assert outcomes[1].figures.oracle is not None
    assert outcomes[1].figures.oracle <= outcomes[1].figures.selected


def test_tables_hold_every_context_and_method(outcomes: list[Outcome]) -> None:
    tables = {table.title: table.rows for table in all_tables(outcomes)}
    assert list(tables) == ["Methods", "Tasks", "Perplexity", "Layers"]
    assert len(tables["Methods"]) == len(tables["Perplexity"]) == 6
    assert tables["Tasks"][0]["dense"] == 100 * (outcomes[0].score or 0)
    assert len(tables["Layers"]) == 4


def test_a_given_budget_needs_no_tactic(checkpoint: Checkpoint, ruler: PromptBuilder) -> None:
    plan = Plan(["topk"], [0.9], budget=300)
    plan.check()
    sample = ruler.sample("niah_single_2", 1900, 0, 0)
    _, topk = plan.run(checkpoint, sample, context=1900, seed=0)
    assert topk.figures.read == 300
    with pytest.raises(EvaluationError, match="--methods topk: their budget is what a tactic method reads"):
        Plan(["topk"], [0.9]).check()


def test_losses_are_paired() -> None:
    found = [outcome("dense", s, seed=i) for i, s in enumerate((1.0, 0.5, 1.0))]
    found += [outcome("quest", s, seed=i) for i, s in enumerate((1.0, 1.0, 0.0))]
    row = all_tables(found)[0].rows[1]
    assert row["worse / better"] == "1 / 1"
    lost = comparisons(found)["quest", 0.9].lost
    assert lost is not None
    assert lost.mean == pytest.approx(100 / 6)


def test_the_interval_of_a_mean_within_one_task_is_student_s() -> None:
    interval = ratio_interval([1.0, 2.0, 3.0, 6.0], [1.0] * 4, ["a"] * 4)
    assert interval.mean == 3
    assert interval.half_width == pytest.approx(3.182 * (14 / 3 / 4) ** 0.5)


def test_differences_between_tasks_do_not_widen_an_interval() -> None:
    assert ratio_interval([1.0, 1.0, 9.0, 9.0], [1.0] * 4, ["a", "a", "b", "b"]) == (5.0, 0.0)
    assert ratio_interval([1.0, 9.0, 9.0], [1.0] * 3, ["a", "b", "b"]) == (19 / 3, None)


def candidate(estimator: str, threshold: float, lost: float, read: float) -> Candidate:
    return Candidate(estimator, threshold, Interval(lost, None), Interval(0.01, None), read)


def test_the_cheapest_setting_within_the_bounds_is_chosen() -> None:
    found = [
        candidate("fit", 0.7, 0.1, 0.1),  # within them again, but only by chance
        candidate("fit", 0.8, 1.0, 0.2),
        candidate("fit", 0.9, 0.5, 0.3),
        candidate("fit", 0.95, 0.0, 0.4),
        candidate("centroid", 0.95, 0.4, 0.35),
    ]
    assert choose(found, 0.5, 0.03) == found[2]
    assert choose(found, 0.4, 0.03) == found[4]
    assert choose(found, 0.5, 0.001) is None


def test_a_run_ends_before_a_job_that_would_end_too_late(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(3, started=time.monotonic(), limit=100)
    assert progress.begin("long", "first")
    progress.end()
    progress = Progress(3, started=time.monotonic() - 200, limit=100)
    assert not progress.begin("long", "second")
    assert "stopped after 0 of 3: 100 s are over" in capsys.readouterr().err


def accuracy_run(out: Path, **changes: object) -> Namespace:
    """Arguments of `tactic eval accuracy`."""
    arguments = {
        **{
            "methods": ["tactic:guarded"],
            "thresholds": [0.9],
            "budget": None,
            "cluster_size": 32,
            "seeds": 1,
        },
        **{"contexts": [1900], "tasks": ["niah_single_2"], "seconds": None, "device": "cpu"},
        **{"model": out.parent / "checkpoint", "out": out, "resume": False},
    }
    return Namespace(**arguments | changes)


def test_a_run_that_was_cut_short_goes_on(
    tmp_path: Path, checkpoint: Checkpoint, ruler: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "load_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(accuracy, "load_builder", lambda *_: ruler)
    both = {"tasks": ["niah_single_2", "vt"], "seeds": 2}
    accuracy.run(accuracy_run(tmp_path / "parts"))
    accuracy.run(accuracy_run(tmp_path / "parts", **both, resume=True))
    accuracy.run(accuracy_run(tmp_path / "whole", **both))
    parts, whole = (
        json.loads((tmp_path / name / "accuracy.json").read_text()) for name in ("parts", "whole")
    )
    key = operator.itemgetter(0, 2, 3)
    rows, expected = (sorted(run["data"]["outcomes"]["rows"], key=key) for run in (parts, whole))
    assert len(rows) == 8
    assert rows == expected
    for a, b in zip(parts["data"]["heads"], whole["data"]["heads"], strict=True):
        assert np.allclose(a["selected"], b["selected"], atol=1e-3)

    with pytest.raises(EvaluationError, match=r"was made with thresholds \[0.9\], not \[0.5\]"):
        accuracy.run(accuracy_run(tmp_path / "parts", thresholds=[0.5], resume=True))
    other = tmp_path / "other" / "checkpoint"
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    with pytest.raises(EvaluationError, match="was made with another checkpoint"):
        accuracy.run(accuracy_run(tmp_path / "parts", model=other, resume=True))
    with pytest.raises(EvaluationError, match="run without --resume"):
        accuracy.run(accuracy_run(tmp_path / "none", resume=True))


def test_a_run_that_is_out_of_time_keeps_what_it_has(
    tmp_path: Path,
    checkpoint: Checkpoint,
    ruler: PromptBuilder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(accuracy, "load_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(accuracy, "load_builder", lambda *_: ruler)
    arguments = accuracy_run(tmp_path / "out", tasks=["niah_single_2", "unknown"])
    with pytest.raises(EvaluationError, match="unknown"):
        accuracy.run(arguments)
    assert "| 1900 | tactic:guarded | 0.9 |" in (tmp_path / "out" / "accuracy.md").read_text()
    assert "niah_single_2" in capsys.readouterr().out


def test_several_contexts_are_summed_up() -> None:
    found = [outcome(method, 1.0, seed=seed) for seed in (0, 1) for method in ("dense", "quest")]
    longer = [replace(each, context=8192, score=0.5) for each in found]
    tables = {table.title: table.rows for table in all_tables([*found, *longer])}
    assert [(row["context"], row["method"]) for row in tables["Methods"]] == [
        (4096, "dense"),
        (4096, "quest"),
        (8192, "dense"),
        (8192, "quest"),
    ]
    (_, quest) = tables["Methods over all context lengths"]
    assert quest["accuracy %"] == (75.0, 0.0)
    assert quest["asked"] == 4


def test_nothing_is_recommended_without_a_measurement() -> None:
    with pytest.raises(EvaluationError, match="there was no time for a question and a text"):
        candidates([])


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (30, 2.042), (31, 2.040), (60, 2.000), (1000, 1.962)]
)
def test_quantiles_of_student_s_t(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, rel=2e-3)
