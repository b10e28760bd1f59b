"""Selection of whole clusters, and of whole levels of them: the definition."""

import torch
from torch import Tensor

from tactic.kernels.ranking.levels import LEVELS
from tactic.kernels.ranking.naive import Ranking


def select(ranking: Ranking, ranks: Tensor) -> Tensor:
    """Clusters that hold the first `ranks` of each query head's order, and all on the level of the last.

    What is on the highest level may weigh anything, and is always selected.

    Args:
        ranking: the cluster order.
        ranks: `[Hq]` int64, ranks to read; a cluster that holds any of them is taken whole.

    Returns:
        `[Hq, K]` bool, by cluster.
    """
    begins = torch.nn.functional.pad(ranking.ends[:, :-1], (1, 0))
    chosen = begins < ranks[:, None]
    last = torch.where(chosen, ranking.levels, LEVELS - 1).amin(-1, keepdim=True)
    chosen = ranking.levels >= last
    return torch.zeros_like(chosen).scatter_(1, ranking.order, chosen)
