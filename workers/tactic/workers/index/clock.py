"""When each slot of the KV pool was last written."""

from __future__ import annotations

import torch


class WriteClock:
    """Stamps KV slots at each write, so that an index can tell whether its keys are still there.

    A segment that was built at time t is valid while none of its slots carries a stamp later than t.
    """

    def __init__(self, slots: int, device: torch.device) -> None:
        self.now = 0
        self._stamps = torch.zeros(slots, dtype=torch.int64, device=device)

    def tick(self, written: torch.Tensor) -> None:
        """Starts a new step that writes the slots `written` [n]."""
        self.now += 1
        # Assigning a number to an index would copy it there, and wait for all that runs on the device.
        self._stamps.index_fill_(0, written.to(torch.int64), self.now)

    def stamps(self, slots: torch.Tensor) -> torch.Tensor:
        """Time of the last write of each of `slots` [n]; int64 on the host."""
        return self._stamps[slots].cpu()

    def latest(self, slots: torch.Tensor) -> torch.Tensor:
        """Time of the last write of any of `slots` [n > 0]; int64 on the device, without waiting for it."""
        return self._stamps[slots.to(torch.int64)].max()
