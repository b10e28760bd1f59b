"""From the host to the device without waiting for it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def upload(
    values: Tensor | Sequence[Any], device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor:
    """Copies numbers so that the host may go on at once: a copy from pageable memory waits for its stream.

    Args:
        values: a tensor on the host, or numbers, nested as for `torch.tensor`.
        device: where to.
        dtype: of the result; that of `values` by default.
    """
    here = torch.as_tensor(values, dtype=dtype)
    if torch.device(device).type == "cuda":
        here = here.pin_memory()
    return here.to(device, non_blocking=True)
