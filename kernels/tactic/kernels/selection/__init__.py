"""Selection: the clusters that hold a query head's first ranks."""

from tactic.kernels.selection.naive import select

__all__ = ["select"]
