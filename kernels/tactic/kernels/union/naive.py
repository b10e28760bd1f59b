"""Union over a group: the definition."""

from torch import Tensor


def unite(selected: Tensor, kv_heads: int) -> Tensor:
    """Clusters that any query head of a group selects, `[Hq, K]` bool to `[H, K]` bool."""
    return selected.view(kv_heads, -1, selected.shape[1]).any(1)
