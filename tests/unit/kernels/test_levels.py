"""Scores in levels."""

import pytest
import torch

from tactic.kernels.ranking.levels import LEVELS, levels_of, middles_of


@pytest.fixture(scope="module")
def scores() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    near = torch.randn(3, 5000, generator=generator) * 8
    far = torch.randn(3, 5000, generator=generator) * 150
    return torch.cat([near, far, torch.tensor([0.0, 16.0, -16.0, 1e4, -1e4]).expand(3, -1)], 1)


def test_levels_are_ordered_like_scores(scores: torch.Tensor) -> None:
    levels = levels_of(scores, torch.zeros(3)).gather(1, scores.argsort(1))
    assert (levels.diff() >= 0).all()
    assert int(levels.min()) == 0
    assert int(levels.max()) == LEVELS - 1


def test_a_level_is_as_wide_as_it_says(scores: torch.Tensor) -> None:
    distance = scores.abs()
    error = (middles_of(levels_of(scores, torch.zeros(3)), torch.zeros(3)) - scores).abs()
    for end, width in ((16, 1 / 32), (48, 1 / 16), (112, 1 / 8), (240, 1 / 4)):
        assert (error[distance < end] <= width / 2 + 1e-4).all()


def test_the_middle_of_a_level_is_on_it(scores: torch.Tensor) -> None:
    reference = torch.tensor([0.0, 100.0, -3.0])
    levels = torch.arange(LEVELS).expand(3, -1)
    inside = levels_of(middles_of(levels, reference), reference)
    assert (inside - levels).abs().max() <= 1  # of a reference that is large, rounding takes a part
    assert torch.equal(inside[0], levels[0])


def test_a_common_shift_changes_nothing(scores: torch.Tensor) -> None:
    shift = torch.full((3,), 512.0)
    near = (scores * 64).round() / 64  # so that the shift is exact
    assert torch.equal(levels_of(near + 512, shift), levels_of(near, torch.zeros(3)))
