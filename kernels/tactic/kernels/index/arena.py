"""Storage of one layer's index, in units of 512 positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index.clusters import Clusters
from tactic.kernels.index.units import CLUSTER_SIZES, MAX_SEGMENT_TOKENS, UNIT_TOKENS, clusters_in, units_in


@dataclass(frozen=True)
class LayerArena:
    """The index of one layer: U units, each with room for 512 members and 512 / c clusters per KV head.

    A segment of n positions takes `units_in(n)` consecutive units; clusters and members begin at the first.

    Attributes:
        cluster_size: average members of a cluster, c.
        centroids: `[H, U * 512 // c, d]`, the keys' dtype.
        spread: `[H, U * 512 // c]` fp32; mean squared distance of the members to the centroid.
        members: `[H, U * 512]` int16; positions relative to the segment's first.
        starts: `[H, U * 512 // c]` int32; first member of a cluster, relative to the segment's first member.
        sizes: `[H, U * 512 // c]` int32.
    """

    cluster_size: int
    centroids: Tensor
    spread: Tensor
    members: Tensor
    starts: Tensor
    sizes: Tensor

    @classmethod
    def create(
        cls,
        *,
        heads: int,
        units: int,
        head_dim: int,
        cluster_size: int = 32,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> "LayerArena":
        """Allocates an empty arena of `units` units for `heads` KV heads.

        Raises:
            ValueError: `cluster_size` is not one of 16, 32, 64.
        """
        if cluster_size not in CLUSTER_SIZES:
            raise ValueError(f"cluster_size={cluster_size} is not supported, use one of {CLUSTER_SIZES}")
        clusters = units * UNIT_TOKENS // cluster_size
        return cls(
            cluster_size=cluster_size,
            centroids=torch.zeros(heads, clusters, head_dim, dtype=dtype, device=device),
            spread=torch.zeros(heads, clusters, dtype=torch.float32, device=device),
            members=torch.zeros(heads, units * UNIT_TOKENS, dtype=torch.int16, device=device),
            starts=torch.zeros(heads, clusters, dtype=torch.int32, device=device),
            sizes=torch.zeros(heads, clusters, dtype=torch.int32, device=device),
        )

    @property
    def units(self) -> int:
        """Units in the arena."""
        return self.members.shape[1] // UNIT_TOKENS

    @property
    def clusters_per_unit(self) -> int:
        """Clusters that one unit has room for."""
        return UNIT_TOKENS // self.cluster_size

    @property
    def bytes_per_unit(self) -> int:
        """Memory that one unit takes in this layer, in bytes."""
        fields = (self.centroids, self.spread, self.members, self.starts, self.sizes)
        return sum(field.numel() * field.element_size() for field in fields) // max(self.units, 1)

    def write(self, unit: int, clusters: Clusters) -> None:
        """Stores one segment's clusters (B = heads) from `unit` on.

        Raises:
            ValueError: the segment does not fit the arena, or its shape does not match.
        """
        length = clusters.members.shape[1]
        cluster_slice, member_slice = self._slices(unit, length)
        expected = (self.members.shape[0], cluster_slice.stop - cluster_slice.start, self.centroids.shape[2])
        if tuple(clusters.centroids.shape) != expected:
            raise ValueError(
                f"clusters.centroids has shape {tuple(clusters.centroids.shape)}, expected [heads, clusters, "
                f"head_dim] = {expected} for {length} positions at cluster_size={self.cluster_size}"
            )
        self.centroids[:, cluster_slice] = clusters.centroids
        self.spread[:, cluster_slice] = clusters.spread
        self.starts[:, cluster_slice] = clusters.starts
        self.sizes[:, cluster_slice] = clusters.sizes
        self.members[:, member_slice] = clusters.members

    def read(self, unit: int, length: int) -> Clusters:
        """Views of the clusters of the segment of `length` positions stored at `unit`; see `write`."""
        cluster_slice, member_slice = self._slices(unit, length)
        return Clusters(
            centroids=self.centroids[:, cluster_slice],
            spread=self.spread[:, cluster_slice],
            members=self.members[:, member_slice],
            starts=self.starts[:, cluster_slice],
            sizes=self.sizes[:, cluster_slice],
        )

    def _slices(self, unit: int, length: int) -> tuple[slice, slice]:
        if not 1 <= length <= MAX_SEGMENT_TOKENS:
            raise ValueError(f"segment length {length} is outside 1 … {MAX_SEGMENT_TOKENS}")
        if unit < 0 or unit + units_in(length) > self.units:
            raise ValueError(
                f"a segment of {length} positions at unit {unit} takes {units_in(length)} units, "
                f"the arena has {self.units}"
            )
        first, member = unit * self.clusters_per_unit, unit * UNIT_TOKENS
        return (
            slice(first, first + clusters_in(length, self.cluster_size)),
            slice(member, member + length),
        )
