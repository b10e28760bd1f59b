"""What a decode step returns."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DecodeResult:
    """Attention output of one layer and step, and what it read.

    Attributes:
        out: `[B, Hq, d]`, the dtype of the query.
        read: `[B, H]` int32; positions that each KV head read.
        selected: `[B, Hq]` int32; positions that each query head would have read alone, sinks and tail too.
        share: `[B, Hq]` fp32; true attention share of what the KV head read; None unless measured.
    """

    out: Tensor
    read: Tensor
    selected: Tensor
    share: Tensor | None
