"""Kinds of attention, by how its weight lies along the order of clusters."""

import torch
from torch import Tensor

KINDS = ("near-uniform", "sharp", "multi-modal", "falling")
_UNIFORM_SHARE = 0.25
_WINDOWS = 20
_RISE, _LEAST_MASS = 2.0, 0.01


def classify(
    ranked: Tensor, oracle: Tensor, visible: Tensor, prefix_share: Tensor, threshold: float
) -> Tensor:
    """The kind of each row, the first of these that it meets.

    - near-uniform: the fewest positions that hold P are a quarter of all, or more;
    - sharp: what is computed exactly holds P;
    - multi-modal: of 20 equal windows of ranks one has a mean weight of at least twice that of an earlier
      one, and holds 1 % of the total: the weight does not fall along the order;
    - falling: all others, the case that y = a/x + b is made for.

    Args:
        ranked: `[R, n]` fp32, true shares in the order of ranks.
        oracle: `[R]` int64, fewest positions that hold P.
        visible: `[R]` int64, all positions that the query sees.
        prefix_share: `[R]` fp32, true share of sinks, tail and exact prefix.
        threshold: P.

    Returns:
        `[R]` int64, index into `KINDS`.
    """
    windows = torch.stack([part.mean(-1) for part in ranked.tensor_split(_WINDOWS, -1)], -1)
    mass = torch.stack([part.sum(-1) for part in ranked.tensor_split(_WINDOWS, -1)], -1)
    lowest = windows.cummin(-1).values[:, :-1]
    rises = (windows[:, 1:] >= _RISE * lowest) & (mass[:, 1:] >= _LEAST_MASS)
    kind = torch.where(rises.any(-1), 2, 3)
    kind = torch.where(prefix_share >= threshold, 1, kind)
    return torch.where(oracle >= _UNIFORM_SHARE * visible, 0, kind)
