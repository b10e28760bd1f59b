import pytest
import torch

from tactic.workers.evaluation.analysis.dense_layers import DenseFirst, DenseLayers
from tactic.workers.evaluation.analysis.growth import Growing
from tactic.workers.evaluation.analysis.refresh import BINS, RefreshInterval
from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.methods.tactic import Tactic
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.haystack import Haystack

PROMPT, GENERATED = 1200, 200


@pytest.fixture(scope="module")
def text(haystack: Haystack) -> list[int]:
    tokens: list[int] = haystack.book.tokens[: PROMPT + GENERATED].tolist()
    return tokens


@pytest.fixture(scope="module")
def prefilled(checkpoint: Checkpoint, text: list[int]) -> Context:
    return checkpoint.prefill(text[:PROMPT], room=GENERATED)


@pytest.fixture(scope="module")
def steps(prefilled: Context, text: list[int]) -> list[Step]:
    return prefilled.capture(text[PROMPT:])


def test_an_index_that_never_grows_is_that_of_the_prompt(steps: list[Step]) -> None:
    tactic = Tactic(0.9)
    assert torch.equal(Growing(tactic, None).select(steps[1]), tactic.select(steps[1]))


def test_between_refreshes_the_index_is_that_of_the_last_one(steps: list[Step]) -> None:
    step = steps[1]
    first, tactic = step.first, Tactic(0.9)
    chosen = Growing(tactic, 64).select(step)
    assert torch.equal(chosen[:, :, :64], tactic.select(step)[:, :, :64]), "not before the first refresh"
    for begin in (64, 128, 192):
        end = min(begin + 64, step.query.shape[2])
        layer = step.layer.over(step.keys[: first + begin])
        part = Step(layer, step.query[:, :, begin:end], step.keys, step.values, first + begin)
        expected = tactic.select(
            Step(layer, part.query, step.keys[: first + end], step.values[: first + end], part.first)
        )
        assert torch.equal(chosen[:, :, begin:end, : first + end], expected)
        assert not chosen[:, :, begin:end, first + end :].any()


def test_a_step_may_be_handled_in_parts(steps: list[Step]) -> None:
    step = steps[0]
    whole = Growing(Tactic(0.9), 64).select(step)
    method = Growing(Tactic(0.9), 64)
    begin = 0
    for part in step.split(step.query.shape[0] * step.query.shape[1] * step.keys.shape[0] * 50):
        chosen = method.select(part)
        queries = slice(begin, begin + part.query.shape[2])
        assert torch.equal(chosen, whole[:, :, queries, : chosen.shape[-1]])
        begin = queries.stop
    assert begin == GENERATED + 1


def test_what_leaves_the_window_is_lost(steps: list[Step]) -> None:
    step = steps[0]
    chosen = Growing(Tactic(0.9), None, window=50).select(step)
    first = step.first
    assert chosen[:, :, 120, first + 71 : first + 121].all()
    assert not chosen[:, :, 120, first : first + 71].any()
    assert torch.equal(chosen[..., :first], Tactic(0.9).select(step)[..., :first])


def test_policies_side_by_side(prefilled: Context, text: list[int]) -> None:
    question = RefreshInterval(0.9, "centroid", (64, 128), window=50)
    question.add(prefilled, text[PROMPT:])
    rows = {row["refresh"]: row for row in question.tables()[0].rows}
    assert list(rows) == ["dense", "every 64", "every 128", "never", "never, last 50"]
    assert rows["dense"]["as dense"] == rows["dense"]["share"] == (1.0, None)
    late = {name: row["late read"][0] for name, row in rows.items()}
    assert late["every 64"] < late["never"] < late["dense"]
    assert late["never, last 50"] < late["never"]
    for curve in question.data()["curves"]:
        assert len(curve["step"]) == len(curve["share"]) == len(curve["read"]) == BINS


def test_dense_layers_read_everything(prefilled: Context, text: list[int], steps: list[Step]) -> None:
    method = DenseFirst(Tactic(0.9, "centroid"), 1)
    first, second = steps[:2]
    assert torch.equal(method.select(first), first.visible.expand(first.logits.shape))
    assert torch.equal(method.select(second), method.method.select(second))
    question = DenseLayers(0.9, "centroid")
    question.add(prefilled, text[PROMPT:])
    rows = question.tables()[0].rows
    assert [row["dense layers"] for row in rows] == ["all", "none", "first 1", "first 2", "first 3"]
    read = [row["read"][0] for row in rows]
    assert read[1] < read[2] < read[3] < read[4] < read[0]
    assert rows[0]["loss"] == (0.0, None)


def test_at_a_threshold_of_1_nothing_is_lost(prefilled: Context, text: list[int]) -> None:
    question = RefreshInterval(1.0, "centroid", (64,), window=GENERATED + 1)
    question.add(prefilled, text[PROMPT:])
    perplexities = [row["perplexity"][0] for row in question.tables()[0].rows]
    assert perplexities == pytest.approx([perplexities[0]] * len(perplexities), rel=1e-4)
