import pytest
import torch

from tactic.workers.evaluation.weights import oracle_count, oracle_cut


@pytest.mark.parametrize("threshold", [0.5, 0.9, 0.99])
def test_the_oracle_counts_as_many_as_sorting_does(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.softmax(4 * torch.randn(3, 5, 700, generator=generator), -1)
    descending = shares.sort(-1, descending=True).values.double().cumsum(-1)
    expected = (descending < threshold).sum(-1) + 1
    assert torch.equal(oracle_count(shares, threshold), expected)


def test_of_equal_entries_only_as_many_count_as_are_needed() -> None:
    assert oracle_count(torch.full((1, 8), 1 / 8), 0.5).tolist() == [4]
    assert oracle_count(torch.tensor([[0.5, 0.125, 0.125, 0.125, 0.125]]), 0.75).tolist() == [3]


def test_the_cut_is_the_smallest_share_that_is_needed() -> None:
    assert oracle_cut(torch.tensor([[0.5, 0.25, 0.125, 0.125]]), 0.7).item() == 0.25
    assert oracle_cut(torch.tensor([[1.0, 0.0]]), 1.0).item() == 1.0
