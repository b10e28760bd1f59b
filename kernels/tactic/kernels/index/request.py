"""One request's index in one layer, gathered from the arena."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.codes import decode
from tactic.kernels.index.table import SegmentTable
from tactic.kernels.index.units import UNIT_TOKENS


@dataclass(frozen=True)
class RequestIndex:
    """The K clusters of all segments of one request, without the sinks, which are attended anyway.

    Members ascend within a cluster, so the sinks are the first of theirs: leaving them out moves a cluster's
    first member and shortens it, possibly to nothing. Centroid and spread stay those of all members.

    Attributes:
        centroids: `[H, K, d]` fp32.
        spread: `[H, K]` fp32.
        sizes: `[H, K]` int64; members, sinks left out.
        firsts: `[H, K]` int64; first member, as an index into the flattened `members`.
        segment_starts: `[K]` int64; first position of each cluster's segment.
        members: `[H * U * 512]` int16; the whole arena's.
        length: clustered positions, sinks included.
        sinks: sinks among them.
    """

    centroids: Tensor
    spread: Tensor
    sizes: Tensor
    firsts: Tensor
    segment_starts: Tensor
    members: Tensor
    length: int
    sinks: int

    @classmethod
    def gather(cls, arena: LayerArena, table: SegmentTable, slot: int, *, sinks: int) -> "RequestIndex":
        """Reads the row `slot` of the table, which must not be empty."""
        count = int(table.count[slot])
        units = table.unit[slot, :count].long()
        starts = table.start[slot, :count].long()
        lengths = table.length[slot, :count].long()
        per_segment = (lengths + arena.cluster_size - 1) // arena.cluster_size

        clusters = ragged_arange(units * arena.clusters_per_unit, per_segment)
        segment_starts = starts.repeat_interleave(per_segment)
        heads, per_head = arena.members.shape
        bases = (units * UNIT_TOKENS).repeat_interleave(per_segment)
        bases = bases + torch.arange(0, heads * per_head, per_head, device=bases.device)[:, None]
        members = arena.members.view(-1)
        firsts = arena.starts.index_select(1, clusters) + bases
        sizes = arena.sizes.index_select(1, clusters).long()

        length = int(lengths.sum())
        leading = int((segment_starts < sinks).sum())
        if leading:
            offsets = torch.arange(sinks, device=bases.device)
            within = offsets < sizes[:, :leading, None]
            candidates = members[(firsts[:, :leading, None] + offsets).where(within, 0)]
            dropped = (within & (candidates + segment_starts[:leading, None] < sinks)).sum(-1)
            firsts[:, :leading] += dropped
            sizes[:, :leading] -= dropped
        return cls(
            centroids=decode(*(each.index_select(1, clusters) for each in (arena.codes, arena.factors))),
            spread=arena.spread.index_select(1, clusters),
            sizes=sizes,
            firsts=firsts,
            segment_starts=segment_starts,
            members=members,
            length=length,
            sinks=min(sinks, length),
        )

    @property
    def ranks(self) -> int:
        """Positions that are ranked: clustered, and no sink."""
        return self.length - self.sinks


def ragged_arange(starts: Tensor, lengths: Tensor) -> Tensor:
    """Concatenates `starts[i] … starts[i] + lengths[i] - 1` over i; `[n]` int64 twice to `[sum]` int64."""
    ends = lengths.cumsum(0)
    shift = (starts - (ends - lengths)).repeat_interleave(lengths)
    return shift + torch.arange(shift.shape[0], device=shift.device)
