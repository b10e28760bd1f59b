"""What each request wants of the decode step, in device arrays so that a CUDA graph can replay it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodeOptions:
    """Options of R request slots, and the settings that hold for all.

    Attributes:
        threshold: `[R]` fp32; P, target share of the attention weight, in (0, 1]. 1 reads everything.
        estimator: `[R]` int32; id of the estimator, see `tactic.kernels.estimators.estimator_id`.
        dense: `[R]` bool; read everything, ignore the index.
        sinks: first positions that are always attended.
        min_clustered: requests with fewer clustered positions read everything.
        exact_fraction: share of the ranks, from the first, whose weights `fit` computes (paper: 1-2 %).
        windows: where `fit` samples, as two fractions of the ranks.
        window: ranks sampled at each of the two.
    """

    threshold: Tensor
    estimator: Tensor
    dense: Tensor
    sinks: int = 16
    min_clustered: int = 1024
    exact_fraction: float = 0.02
    windows: tuple[float, float] = (0.1, 0.6)
    window: int = 64

    def __post_init__(self) -> None:
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks} must not be negative")
        if self.window < 1:
            raise ValueError(f"window={self.window} must be at least 1")
        if not 0 < self.exact_fraction <= self.windows[0] < self.windows[1] < 1:
            raise ValueError(
                f"0 < exact_fraction ≤ windows[0] < windows[1] < 1 must hold, got "
                f"exact_fraction={self.exact_fraction}, windows={self.windows}"
            )

    @classmethod
    def create(
        cls,
        slots: int,
        *,
        threshold: float = 0.9,
        estimator: int = 3,  # guarded
        dense: bool = False,
        device: torch.device | str = "cpu",
        sinks: int = 16,
        min_clustered: int = 1024,
    ) -> "DecodeOptions":
        """The same options for `slots` request slots; `choose` changes those of one.

        Raises:
            ValueError: `threshold` is outside (0, 1], or a setting is out of range.
        """
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold={threshold} is outside (0, 1]")
        return cls(
            threshold=torch.full((slots,), threshold, dtype=torch.float32, device=device),
            estimator=torch.full((slots,), estimator, dtype=torch.int32, device=device),
            dense=torch.full((slots,), dense, dtype=torch.bool, device=device),
            sinks=sinks,
            min_clustered=min_clustered,
        )

    def choose(self, slot: int, *, threshold: float, estimator: int, dense: bool) -> None:
        """Sets the options of one request slot, in stream order and without waiting for the device."""
        self.threshold[slot].fill_(threshold)
        self.estimator[slot].fill_(estimator)
        self.dense[slot].fill_(dense)
