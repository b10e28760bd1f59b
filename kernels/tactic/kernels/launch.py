# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Programmatic dependent launch: a kernel starts while the one before it ends, and waits for its results.

Every program of such a kernel waits, also one that has nothing to do: else the kernel could end before the
one before it, and the next would not wait for that one.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_FIRST_CAPABILITY = (9, 0)


def overlap(device: torch.device) -> dict[str, bool]:
    """Launch options of a kernel with a constant `OVERLAP`."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return {"OVERLAP": False}
    return {"OVERLAP": True, "launch_pdl": True}


@triton.jit
def start_next(OVERLAP: tl.constexpr):
    """Lets the next kernel's programs start where there is room."""
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    """Until the kernel before this one is over; what was written before that one may be read earlier."""
    if OVERLAP:
        gdc_wait()
