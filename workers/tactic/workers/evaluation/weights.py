"""Smallest sets of positions that reach a share of the attention weight."""

import torch
from torch import Tensor

_ONE = 0x3F800000  # the bits of 1.0; those of non-negative floats are ordered like the floats


def oracle_cut(shares: Tensor, threshold: float) -> Tensor:
    """The largest share t such that the entries ≥ t sum to `threshold`: where oracle top-p ends.

    Searched for in the bits of the number, so no row is sorted and the result is exact.

    Args:
        shares: `[..., n]` fp32, ≥ 0, each row's sum 1.
        threshold: P in (0, 1].

    Returns:
        `[..., 1]` fp32; 0 where rounding keeps the row's sum below the threshold.
    """
    low = torch.zeros(*shares.shape[:-1], 1, dtype=torch.int32, device=shares.device)
    high = torch.full_like(low, _ONE + 1)
    for _ in range(31):
        middle = (low + high) // 2
        cut = middle.view(torch.float32)
        enough = shares.where(shares >= cut, 0).sum(-1, keepdim=True) >= threshold
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return low.view(torch.float32)


def oracle_count(shares: Tensor, threshold: float) -> Tensor:
    """Fewest entries of each row that sum to `threshold`: `[..., n]` fp32 to `[...]` int64."""
    cut = oracle_cut(shares, threshold)
    chosen = shares >= cut
    # Of entries that equal the cut only as many count as are needed.
    mass = shares.where(chosen, 0).sum(-1, keepdim=True)
    tied = (shares == cut).sum(-1, keepdim=True)
    spare = ((mass - threshold) / cut.clamp(min=torch.finfo(torch.float32).tiny)).floor()
    spare = torch.minimum(spare.clamp(min=0), (tied - 1).clamp(min=0).float())
    return (chosen.sum(-1, keepdim=True) - spare.long()).squeeze(-1)
