"""How much of the time a clustering actor computes, and when a GPU is through."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

import torch

LONGEST_REST_S = 0.5
"""After work on a GPU, whose pieces take milliseconds: a longer one had its kernels compiled first."""


class Pace:
    """Lets an actor work for a share of the time, by rests within a job.

    As a context it spans one job, and leaves it when the GPUs are through.

    Args:
        duty: share of the time, 0 < duty ≤ 1.
    """

    def __init__(self, duty: float) -> None:
        self._duty = duty
        self._began = 0.0
        # Only those that are used: to ask another one is to take memory there.
        self._gpus: set[torch.device] = set()

    def uses(self, device: torch.device) -> None:
        """Says where the actor is about to work."""
        if device.type == "cuda":
            self._gpus.add(device)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.wait()

    def rest(self) -> None:
        """To be called when a piece of work is queued: waits for it, and rests for its part of the time."""
        if self._duty == 1:
            return
        self.wait()
        rest = (time.monotonic() - self._began) * (1 / self._duty - 1)
        time.sleep(min(rest, LONGEST_REST_S) if self._gpus else rest)
        self._began = time.monotonic()

    def wait(self) -> None:
        """Returns when this process's kernels and copies are through. Raises RuntimeError if a GPU fails."""
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
