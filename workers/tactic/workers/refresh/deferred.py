"""Host work that goes on when values have come from the device, without anybody waiting for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

Then = Callable[[list[torch.Tensor]], None]


class Deferred:
    """Continuations that wait for the device. On the CPU nothing is late, and they run at once.

    Args:
        device: that of the values.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch
        self._waiting: list[tuple[torch.cuda.Event, list[torch.Tensor], Then]] = []

    def aside(self) -> AbstractContextManager[object]:
        """Queues what is called within on a stream of its own, behind what the present stream has now."""
        if self._stream is None:
            return nullcontext()
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        return torch.cuda.stream(self._stream)

    def when_here(self, values: Sequence[torch.Tensor], then: Then) -> None:
        """Calls `then` with copies of `values` on the host, once the present stream has come so far.

        Args:
            values: on the device or on the host; none only waits for what is queued now.
            then: called by this or by a later `advance`.
        """
        if self._stream is None:
            then([value.clone() for value in values])
            return
        copies = []
        for value in values:
            copy = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
            copies.append(copy.copy_(value, non_blocking=True))
        reached = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch
        reached.record()
        self._waiting.append((reached, copies, then))

    def advance(self) -> None:
        """Runs the continuations whose values have come."""
        waiting, self._waiting = self._waiting, []
        for i, (reached, copies, then) in enumerate(waiting):
            if reached.query():  # type: ignore[no-untyped-call]  # torch
                then(copies)
            else:
                self._waiting.append(waiting[i])
