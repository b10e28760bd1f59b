"""Storage of one layer's index, in units of 512 positions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.index.clusters import Clusters
from tactic.kernels.index.codes import decode, encode
from tactic.kernels.index.units import CLUSTER_SIZES, MAX_SEGMENT_TOKENS, UNIT_TOKENS, clusters_in, units_in


@dataclass(frozen=True)
class LayerArena:
    """The index of one layer: U units, each with room for 512 members and 512 / c clusters per KV head.

    A segment of n positions takes `units_in(n)` consecutive units; clusters and members begin at the first.
    Centroids are read for every query, so they are kept in 8 bits: see `codes.py`.

    Attributes:
        cluster_size: average members of a cluster, c.
        codes: `[H, U * 512 // c, d]` int8; of the centroids.
        factors: `[H, U * 512 // c]` fp32; a centroid is its codes times its factor.
        spread: `[H, U * 512 // c]` fp32; mean squared distance of the members to the centroid.
        members: `[H, U * 512]` int16; positions relative to the segment's first.
        starts: `[H, U * 512 // c]` int32; first member of a cluster, relative to the segment's first member.
        sizes: `[H, U * 512 // c]` int32.
    """

    cluster_size: int
    codes: Tensor
    factors: Tensor
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
            codes=torch.zeros(heads, clusters, head_dim, dtype=torch.int8, device=device),
            factors=torch.zeros(heads, clusters, dtype=torch.float32, device=device),
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
        return sum(each.numel() * each.element_size() for each in self.tensors) // max(self.units, 1)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The arrays, in the order in which an arena takes them."""
        return self.codes, self.factors, self.spread, self.members, self.starts, self.sizes

    def write(self, unit: int, clusters: Clusters) -> None:
        """Stores one segment's clusters (B = heads) from `unit` on.

        Raises:
            ValueError: the segment does not fit the arena, or its shape does not match.
        """
        length = clusters.members.shape[1]
        codes, factors, spread, members, starts, sizes = self.views(unit, length)
        if clusters.centroids.shape != codes.shape:
            raise ValueError(
                f"clusters.centroids has shape {tuple(clusters.centroids.shape)}, expected [heads, clusters, "
                f"head_dim] = {tuple(codes.shape)} for {length} positions at cluster_size={self.cluster_size}"
            )
        if codes.is_cuda:
            from tactic.kernels.index.codes_triton import encode_into

            encode_into(codes, factors, clusters.centroids)
        else:
            codes[:], factors[:] = encode(clusters.centroids)
        spread[:], members[:] = clusters.spread, clusters.members
        starts[:], sizes[:] = clusters.starts, clusters.sizes

    def read(self, unit: int, length: int) -> Clusters:
        """The clusters of the segment of `length` positions stored at `unit`; see `write`.

        Centroids are decoded, fp32; the rest are views.
        """
        codes, factors, *rest = self.views(unit, length)
        return Clusters(decode(codes, factors), *rest)

    def blank(self, unit: int, length: int) -> None:
        """Leaves nothing at `unit` that could pass for the clusters of a segment of `length` positions."""
        for view in self.views(unit, length):
            view.fill_(torch.nan if view.is_floating_point() else -1)

    def views(self, unit: int, length: int) -> tuple[Tensor, ...]:
        """The part of each of `tensors` that belongs to the segment of `length` positions at `unit`.

        Raises:
            ValueError: there is no room for it.
        """
        clusters, members = self._slices(unit, length)
        return tuple(each[:, members if each is self.members else clusters] for each in self.tensors)

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
