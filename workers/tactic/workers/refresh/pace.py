"""How much of the time a clustering actor computes."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import torch


class Pace:
    """Lets an actor work for a share of the time, by rests between the layers of a job.

    As a context it spans one job, and leaves it when the GPUs are through.

    Args:
        duty: share of the time, 0 < duty ≤ 1.
    """

    def __init__(self, duty: float) -> None:
        self._duty = duty
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            wait_for_gpus()

    def layer_done(self) -> None:
        """To be called when a layer's work is queued: waits for it, and rests for its part of the time."""
        if self._duty == 1:
            return
        wait_for_gpus()
        time.sleep((time.monotonic() - self._began) * (1 / self._duty - 1))
        self._began = time.monotonic()


def wait_for_gpus() -> None:
    """Returns when all kernels and copies of this process are through."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch
        for device in range(torch.cuda.device_count()):
            torch.cuda.synchronize(device)
