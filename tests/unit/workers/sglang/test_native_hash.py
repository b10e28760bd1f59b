"""The hash behind seeded sampling equals MurmurHash3's definition."""

import struct

import torch

from tactic.workers.sglang.native_hash import murmur_hash32


def reference(data: bytes) -> int:
    """MurmurHash3_x86_32 with seed 0, of whole 4-byte blocks, as its author defines it."""
    word, state = 2**32 - 1, 0
    for (block,) in struct.iter_unpack("<I", data):
        k = block * 0xCC9E2D51 & word
        k = (k << 15 | k >> 17) & word
        state ^= k * 0x1B873593 & word
        state = (state << 13 | state >> 19) & word
        state = (state * 5 + 0xE6546B64) & word
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & word
    return state ^ state >> 16


def test_reference_is_murmur3() -> None:
    assert reference(b"") == 0
    assert reference(b"test") == 0xBA6BD213  # the published value for seed 0


def test_hash_equals_its_definition() -> None:
    seeds, positions, columns = [0, 1, 2**31 - 1, 2**40 + 7], [0, 5, 131071, 2**31], [0, 1, 128255]
    hashed = murmur_hash32(
        torch.tensor(seeds, dtype=torch.uint64), torch.tensor(positions), torch.tensor(columns)
    )
    expected = [
        [reference(struct.pack("<QII", seed, position, column)) for column in columns]
        for seed, position in zip(seeds, positions, strict=True)
    ]
    assert hashed.to(torch.int64).tolist() == expected
