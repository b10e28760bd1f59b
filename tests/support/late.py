"""A device that is behind the host, for what waits for one."""

from collections.abc import Callable, Sequence

import torch

from tactic.workers.refresh.deferred import Deferred, Then


class LateDeferred(Deferred):
    """Values come as they were when they were asked for, but not at once.

    Args:
        reached: whether the device has come to what is asked for next; asked of each in each `advance`.
    """

    def __init__(self, reached: Callable[[], bool]) -> None:
        super().__init__(torch.device("cpu"))
        self.queued: list[tuple[list[torch.Tensor], Then]] = []
        self._reached = reached

    def when_here(self, values: Sequence[torch.Tensor], then: Then) -> None:
        self.queued.append(([value.clone() for value in values], then))

    def advance(self) -> None:
        queued, self.queued = self.queued, []
        for values, then in queued:
            if self._reached():
                then(values)
            else:
                self.queued.append((values, then))
