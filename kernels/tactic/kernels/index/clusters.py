"""What k-means returns and the arena stores."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Clusters:
    """A segment of n positions in K clusters, for B independent problems (KV heads, or layers x KV heads).

    Attributes:
        centroids: `[B, K, d]`, the keys' dtype; mean of the members.
        spread: `[B, K]` fp32; mean squared distance of the members to the centroid.
        members: `[B, n]` int16; positions in the segment, grouped by cluster, ascending within one.
        starts: `[B, K]` int32; offset of each cluster's first member in `members`.
        sizes: `[B, K]` int32; members of each cluster, at least one.
    """

    centroids: Tensor
    spread: Tensor
    members: Tensor
    starts: Tensor
    sizes: Tensor

    def split(self, parts: int) -> "list[Clusters]":
        """Cuts the B problems into `parts` equal runs, e.g. layers x heads into layers."""
        fields = (self.centroids, self.spread, self.members, self.starts, self.sizes)
        if fields[0].shape[0] % parts:
            raise ValueError(f"parts={parts} does not divide the {fields[0].shape[0]} problems")
        return [Clusters(*run) for run in zip(*(field.chunk(parts) for field in fields), strict=True)]
