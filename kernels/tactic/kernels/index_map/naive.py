"""From selected clusters to pool rows: the definition."""

import torch
from torch import Tensor

from tactic.kernels.index.request import RequestIndex, ragged_arange


def read_mask(index: RequestIndex, united: Tensor, length: int) -> Tensor:
    """Positions that each KV head reads: sinks, members of its clusters, tail.

    Args:
        index: the request's clusters.
        united: `[H, K]` bool, clusters to read.
        length: positions of the request.

    Returns:
        `[H, length]` bool.
    """
    mask = torch.zeros(united.shape[0], length, dtype=torch.bool, device=united.device)
    mask[:, : index.sinks] = True
    mask[:, index.length :] = True
    head, cluster = united.nonzero(as_tuple=True)
    sizes = index.sizes[head, cluster]
    members = index.members[ragged_arange(index.firsts[head, cluster], sizes)]
    starts = (head * length + index.segment_starts[cluster]).repeat_interleave(sizes)
    mask.view(-1)[starts + members] = True
    return mask


def map_rows(mask: Tensor, slot_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of a page-size-1 pool of shape `[slots * H, 1, d]`, ascending in position.

    Args:
        mask: `[H, n]` bool, positions that each KV head reads.
        slot_ids: `[n]` integer, pool slot of each position.

    Returns:
        Rows `slot_id * H + h` of all heads, head by head, `[sum]` int32, and how many each has, `[H]` int32.
    """
    heads = mask.shape[0]
    head, position = mask.nonzero(as_tuple=True)
    rows = slot_ids[position] * heads + head
    return rows.to(torch.int32), mask.sum(-1, dtype=torch.int32)
