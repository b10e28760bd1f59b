"""Which segments make up the index of each request slot."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tactic.kernels.upload import upload


@dataclass(frozen=True)
class SegmentTable:
    """The segments of R request slots, at most S each. The same units serve in every layer's arena.

    Segments of a row are contiguous: `start[r, 0] == 0` and `start[r, i + 1] == start[r, i] + length[r, i]`.
    Entries at and above `count[r]` are undefined.

    Attributes:
        unit: `[R, S]` int32; first arena unit.
        start: `[R, S]` int32; first position.
        length: `[R, S]` int32; positions.
        count: `[R]` int32; segments of the row.
    """

    unit: Tensor
    start: Tensor
    length: Tensor
    count: Tensor

    @classmethod
    def create(cls, *, slots: int, segments: int, device: torch.device | str = "cpu") -> "SegmentTable":
        """An empty table of `slots` rows with room for `segments` segments each."""
        return cls(
            unit=torch.zeros(slots, segments, dtype=torch.int32, device=device),
            start=torch.zeros(slots, segments, dtype=torch.int32, device=device),
            length=torch.zeros(slots, segments, dtype=torch.int32, device=device),
            count=torch.zeros(slots, dtype=torch.int32, device=device),
        )

    def write(self, slot: int, segments: Sequence[tuple[int, int]]) -> None:
        """Replaces a row by `(unit, length)` pairs in order of position.

        Raises:
            ValueError: there are more segments than the table has columns.
        """
        if len(segments) > self.unit.shape[1]:
            raise ValueError(
                f"{len(segments)} segments for slot {slot}, the table holds {self.unit.shape[1]}"
            )
        row = upload(torch.tensor(segments, dtype=torch.int32).view(-1, 2), self.unit.device)
        count = len(segments)
        self.unit[slot, :count] = row[:, 0]
        self.length[slot, :count] = row[:, 1]
        self.start[slot, :count] = row[:, 1].cumsum(0) - row[:, 1]
        self.count[slot].fill_(count)

    def clustered_length(self, slot: int) -> int:
        """Positions of the row that are in the index (reads the device)."""
        count = int(self.count[slot])
        return int(self.length[slot, :count].sum()) if count else 0
