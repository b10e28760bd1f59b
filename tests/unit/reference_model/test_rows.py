"""Rows: deterministic, of the asked length, and answerable from what stands before the answer."""

from random import Random

import numpy as np
import pytest
from reference_model.episodes import TASKS
from reference_model.rows import ANSWER, LAYOUTS, MAX_POSITION, RowBuilder
from reference_model.tokenizer import Codec


@pytest.mark.parametrize("length", [512, 3000])
@pytest.mark.parametrize("task", [*TASKS, "text", "copy"])
def test_row_has_its_length_and_depends_on_its_generator_alone(
    builder: RowBuilder, task: str, length: int
) -> None:
    one, two = (builder.build(Random(f"{task}{length}"), task, length, skip=0.5) for _ in range(2))
    assert one.tokens.shape == one.classes.shape == one.positions.shape == (length + 1,)
    for part in ("tokens", "classes", "positions"):
        np.testing.assert_array_equal(getattr(one, part), getattr(two, part))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_stand_in_the_text_before_they_are_asked_for(
    builder: RowBuilder, codec: Codec, layout: str
) -> None:
    for seed in range(5):
        row = builder.build(Random(seed), "few_numbers", 1500, layout=layout)
        answers = np.flatnonzero(row.classes == ANSWER)
        before = codec.decode(row.tokens[: answers[0]])
        values = [
            word.strip(".")
            for word in codec.decode(row.tokens[answers]).replace("<|end|>", " ").split()
            if word.strip(".").isdigit()
        ]
        assert values
        assert all(value in before for value in values)


def test_positions_jump_forward_within_the_limit(builder: RowBuilder) -> None:
    positions = builder.build(Random(1), "text", 2000, skip=1.0).positions
    assert np.diff(positions).min() == 1
    assert np.diff(positions).max() > 1
    assert positions[0] == 0
    assert positions[-1] <= MAX_POSITION


def test_a_text_longer_than_every_book_is_refused(builder: RowBuilder) -> None:
    with pytest.raises(ValueError, match="the longest has"):
        builder.build(Random(1), "text", 10**6)
