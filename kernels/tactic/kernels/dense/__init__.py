"""Dense decode attention: the reference, and what requests without a useful index get."""

from tactic.kernels.dense.naive import attend, dense_decode

__all__ = ["attend", "dense_decode"]
