"""SGLang's hash for seeded sampling, without the Triton kernel that it launches on every device."""

from __future__ import annotations

import torch

_WORD = 0xFFFFFFFF


def murmur_hash32(seed: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """MurmurHash3 (32 bit, seed 0) of the 16 bytes seed, position, column, little-endian.

    Args:
        seed: [n], 64 bit.
        positions: [n], integer; its low 32 bits count.
        columns: [m], integer; its low 32 bits count.

    Returns:
        [n, m] uint32.
    """
    # int64 wraps as uint64 does, and only the low 32 bits of a product are kept.
    seed, positions, columns = (x.to(torch.int64) for x in (seed, positions, columns))
    blocks = (seed & _WORD, (seed >> 32) & _WORD, positions & _WORD)
    state = torch.zeros_like(seed)
    for block in blocks:
        state = _mix(state, block)
    state = _mix(state[:, None], (columns & _WORD)[None, :])
    return _finish(state ^ 16).to(torch.uint32)


def _mix(state: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    block = _rotate((block * 0xCC9E2D51) & _WORD, 15)
    state = state ^ ((block * 0x1B873593) & _WORD)
    return (_rotate(state, 13) * 5 + 0xE6546B64) & _WORD


def _rotate(x: torch.Tensor, bits: int) -> torch.Tensor:
    return ((x << bits) | (x >> (32 - bits))) & _WORD


def _finish(state: torch.Tensor) -> torch.Tensor:
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _WORD
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _WORD
    return state ^ (state >> 16)
