"""Tactic decode attention: rank, estimate, select, unite, map, attend."""

from tactic.kernels.decode.naive import decode
from tactic.kernels.decode.result import DecodeResult

__all__ = ["DecodeResult", "decode"]
