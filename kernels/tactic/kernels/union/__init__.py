"""Union: what the query heads of a group select together is what their KV head reads."""

from tactic.kernels.union.naive import unite

__all__ = ["unite"]
