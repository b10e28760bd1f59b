"""Centroids in 8 bits: an integer for each element, and one factor for each centroid."""

import torch
from torch import Tensor

LARGEST = 127


def encode(centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds centroids to multiples of 1/127 of their largest element.

    Args:
        centroids: `[…, d]`, any float dtype.

    Returns:
        Codes `[…, d]` int8 and factors `[…]` fp32: a centroid is about code · factor. Where a centroid is not
        finite its factor is NaN.
    """
    wide = centroids.float()
    largest = wide.abs().amax(-1)
    inverse = torch.where(largest > 0, LARGEST / largest, 0.0)
    codes = (wide * inverse[..., None]).round().nan_to_num(0.0, 0.0, 0.0).to(torch.int8)
    return codes, torch.where(largest.isfinite(), largest / LARGEST, torch.nan)


def decode(codes: Tensor, factors: Tensor) -> Tensor:
    """Centroids `[…, d]` fp32."""
    return codes.float() * factors[..., None]
