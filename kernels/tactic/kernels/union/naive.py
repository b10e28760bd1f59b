"""Union over a group: the definition."""

from torch import Tensor

NEARLY_ALL = (3, 4)
"""A group reads all of its tokens where one of its heads selects this share: lists would cost more."""


def unite(selected: Tensor, sizes: Tensor) -> Tensor:
    """Clusters that a KV head reads for its group: what any of its query heads selects, or all.

    Args:
        selected: `[Hq, K]` bool.
        sizes: `[H, K]` integer; members of each cluster.

    Returns:
        `[H, K]` bool.
    """
    by_group = selected.view(sizes.shape[0], -1, selected.shape[1])
    most = (by_group * sizes[:, None]).sum(-1).amax(-1)
    part, whole = NEARLY_ALL
    return by_group.any(1) | (most * whole >= sizes.sum(-1) * part)[:, None]
