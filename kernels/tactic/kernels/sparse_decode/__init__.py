"""Sparse decode attention over listed rows of the KV pool, a list for each KV head."""

from tactic.kernels.sparse_decode.naive import sparse_decode

__all__ = ["sparse_decode"]
