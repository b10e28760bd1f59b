import pytest

from tactic.workers.evaluation.analysis.interval import Interval
from tactic.workers.evaluation.engine import ALL, DENSE, Reply, tables


def reply(task: str, context: int, seed: int, mode: str, score: float) -> Reply:
    return Reply(task, context, seed, mode, score, [seed] if score else [], 0.5, "")


def test_losses_are_those_of_the_same_questions() -> None:
    scores = {("vt", 8): [1.0, 0.5], ("vt", 4): [1.0, 1.0], ("qa", 8): [0.0, 1.0], ("qa", 4): [1.0, 1.0]}
    replies = [
        reply(task, context, seed, mode, score if mode == DENSE else max(0.0, score - lost))
        for (task, context), own in scores.items()
        for seed, score in enumerate(own)
        for mode, lost in ((DENSE, 0.0), ("P = 0.9", 0.5 if task == "vt" else 0.0))
    ]
    by_context, by_task = ({tuple(row.values())[:2]: row for row in table.rows} for table in tables(replies))
    assert [key[0] for key in by_context] == [4, 4, 8, 8, ALL, ALL]
    whole = by_context[ALL, "P = 0.9"]
    lost = whole["lost against dense, points"]
    assert isinstance(lost, Interval)
    assert lost.mean == pytest.approx(25)
    assert (whole["worse"], whole["better"], whole["asked"]) == (4, 0, 8)
    assert by_context[ALL, DENSE]["lost against dense, points"] == Interval(0, 0)
    assert by_task["qa", "P = 0.9"]["worse"] == 0
    assert by_task["vt", "P = 0.9"]["worse"] == 4


def test_one_context_needs_no_sum() -> None:
    (row,) = tables([reply("vt", 4, 0, DENSE, 1.0)])[0].rows
    assert row["context"] == 4
