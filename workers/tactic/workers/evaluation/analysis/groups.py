"""What query heads of one group have in common, and one cut for all of them."""

from itertools import combinations

import torch
from torch import Tensor

from tactic.kernels.estimators import Estimator, Evidence


def jaccard(chosen: Tensor, sizes: Tensor) -> Tensor:
    """Mean over all pairs of heads of |both| / |either|, in positions; 1 where neither selects anything.

    Args:
        chosen: `[H, G, m, K]` bool.
        sizes: `[H, 1, K]` int64, members of each cluster.

    Returns:
        `[H, m]` fp32; 1 if G = 1.
    """
    values = []
    for i, j in combinations(range(chosen.shape[1]), 2):
        both = ((chosen[:, i] & chosen[:, j]) * sizes).sum(-1)
        either = ((chosen[:, i] | chosen[:, j]) * sizes).sum(-1)
        values.append(torch.where(either > 0, both / either.clamp(min=1), 1.0))
    if not values:
        return torch.ones(chosen.shape[0], chosen.shape[2], device=chosen.device)
    return torch.stack(values).mean(0)


def estimated_shares(evidence: Evidence, estimator: Estimator) -> tuple[Tensor, Tensor]:
    """Estimated share of each cluster, `[R, K]`, and of sinks and tail, `[R]`; together they are 1."""
    log_mass = estimator.log_mass(evidence)
    total = torch.logaddexp(log_mass[:, -1], evidence.attended)
    cumulative = torch.exp(log_mass - total[:, None])
    mass = torch.nn.functional.pad(cumulative, (1, 0)).diff(dim=-1).clamp(min=0)
    by_cluster = torch.zeros_like(mass).scatter_(1, evidence.ranking.order, mass)
    return by_cluster, torch.exp(evidence.attended - total)


def cut(score: Tensor, mass: Tensor, attended: Tensor, target: Tensor) -> Tensor:
    """The fewest clusters in descending order of score that hold the target, with what is attended anyway.

    Args:
        score: `[H, m, K]`.
        mass: `[H, m, K]`, share of each cluster.
        attended: `[H, m]`, share of what is read anyway.
        target: `[H, m]`, share to reach.

    Returns:
        `[H, m, K]` bool.
    """
    order = score.argsort(-1, descending=True)
    before = mass.gather(-1, order).cumsum(-1) - mass.gather(-1, order) + attended[..., None]
    return torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, before < target[..., None])


def cut_for_all(score: Tensor, mass: Tensor, attended: Tensor, target: Tensor) -> Tensor:
    """As `cut`, but so that each head of the group reaches its target; all but the score have a G after H."""
    needed = [cut(score, mass[:, head], attended[:, head], target[:, head]) for head in range(mass.shape[1])]
    return torch.stack(needed).any(0)
