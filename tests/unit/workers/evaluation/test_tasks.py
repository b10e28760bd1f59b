import re
from pathlib import Path
from random import Random

import pytest

from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.episode import STYLES, Episode, Style
from tactic.workers.evaluation.tasks.haystack import Haystack
from tactic.workers.evaluation.tasks.prompt import ANSWER_MARGIN, CONTINUED, PromptBuilder
from tactic.workers.evaluation.tasks.registry import PERPLEXITY, TASKS

LENGTH = 8000  # tokens of one byte each


def text(builder: PromptBuilder, ids: list[int]) -> str:
    decoded: str = builder.tokenizer.decode(ids)
    return decoded


@pytest.mark.parametrize("task", TASKS)
def test_a_sample_fills_its_context_and_is_the_same_every_time(builder: PromptBuilder, task: str) -> None:
    sample = builder.sample(task, LENGTH, 3, 0)
    assert sample.prompt == builder.sample(task, LENGTH, 3, 0).prompt
    assert sample.prompt != builder.sample(task, LENGTH, 4, 0).prompt
    assert 0.93 * LENGTH < len(sample.prompt) + sample.limit <= LENGTH
    assert sample.limit == len(sample.gold) + ANSWER_MARGIN


@pytest.mark.parametrize("task", TASKS)
def test_the_context_holds_what_is_asked_for(builder: PromptBuilder, task: str) -> None:
    sample = builder.sample(task, LENGTH, 0, 0)
    assert sample.episode is not None
    prompt, gold = text(builder, sample.prompt), text(builder, sample.gold)
    assert sample.episode.question in prompt
    assert all(expected in prompt for expected in sample.episode.expected)
    assert all(sentence in prompt for sentence in sample.episode.planted)
    assert sample.episode.score(gold) == 1


@pytest.mark.parametrize("style", STYLES)
def test_the_asked_key_has_one_value_unless_more_are_wanted(haystack: Haystack, style: Style) -> None:
    many = {"niah_multivalue": 4, "niah_multiquery": 4}
    for task in (name for name in TASKS if name.startswith("niah")):
        episode = TASKS[task](Random(1), haystack.words, style)
        assert len(set(episode.expected)) == many.get(task, 1)


def test_common_words_are_the_most_common(builder: PromptBuilder) -> None:
    sample = builder.sample("cwe", LENGTH, 0, 0)
    assert sample.episode is not None
    listed = re.findall(r"\d+\. ([a-z]+)", text(builder, sample.prompt))
    counts = {word: listed.count(word) for word in set(listed)}
    assert set(sorted(counts, key=lambda word: -counts[word])[:10]) == set(sample.episode.expected)


def test_the_second_to_fourth_coded_words_are_the_answer(builder: PromptBuilder) -> None:
    sample = builder.sample("fwe", LENGTH, 0, 0)
    assert sample.episode is not None
    listed = re.findall(r"[a-z]{6}|\.{4}", text(builder, sample.prompt))
    counts = {word: listed.count(word) for word in set(listed)}
    ranked = sorted(counts, key=lambda word: -counts[word])
    assert ranked[0] == "...."
    assert ranked[1:4] == list(sample.episode.expected)


def test_perplexity_goes_on_with_the_book(builder: PromptBuilder, haystack: Haystack) -> None:
    sample = builder.sample(PERPLEXITY, LENGTH, 0, 0)
    assert len(sample.gold) == CONTINUED
    assert len(sample.prompt) + CONTINUED == LENGTH
    whole = ",".join(map(str, haystack.book.tokens.tolist()))
    assert ",".join(map(str, [*sample.prompt[-50:], *sample.gold])) in whole


def test_scores() -> None:
    every = Episode("?", "", ["Oslo", "17"])
    assert [every.score(said) for said in ("oslo and 17", "OSLO", "none")] == [1, 0.5, 0]
    some = Episode("?", "", ["Oslo", "17"], any_of=True)
    assert [some.score(said) for said in ("oslo and 17", "OSLO", "none")] == [1, 1, 0]


def test_sentences_stand_between_sentences(builder: PromptBuilder) -> None:
    sample = builder.sample("niah_multikey_1", LENGTH, 0, 0)
    assert sample.episode is not None
    prompt = text(builder, sample.prompt)
    for sentence in sample.episode.planted:
        assert re.search(r"[.!?][\"'”\u2019)]* $", prompt[: prompt.index(sentence)])


def test_what_can_not_be_built_is_refused(builder: PromptBuilder) -> None:
    with pytest.raises(EvaluationError, match="--tasks niah is unknown, use some of niah_single_1, "):
        builder.sample("niah", LENGTH, 0, 0)
    with pytest.raises(EvaluationError, match=r"--contexts 300 is too short for niah_single_2"):
        builder.sample("niah_single_2", 300, 0, 0)


def test_missing_and_short_books_are_refused(tmp_path: Path, checkpoint: Checkpoint) -> None:
    with pytest.raises(EvaluationError, match=r"--books .*nowhere: no such text"):
        Haystack.load(tmp_path / "nowhere", checkpoint.tokenizer, tokens=100)
    with pytest.raises(EvaluationError, match="no such text"):
        Haystack.load(tmp_path, checkpoint.tokenizer, tokens=100)
    (tmp_path / "a.txt").write_text("A short one. ")
    (tmp_path / "b.txt").write_text("Another. ")
    with pytest.raises(EvaluationError, match="the text has 22 tokens, a context of 100 was asked for"):
        Haystack.load(tmp_path, checkpoint.tokenizer, tokens=100)
    assert len(Haystack.load(tmp_path, checkpoint.tokenizer, tokens=20).book.tokens) == 22


def test_a_checkpoint_without_a_chat_template_gets_plain_text(
    builder: PromptBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builder.tokenizer, "chat_template", None)
    prompt = text(builder, builder.sample("niah_single_2", LENGTH, 0, 0).prompt)
    assert prompt.startswith("<|begin|>")
    assert "<|role|>" not in prompt
