"""Index map: from clusters to the rows of the KV pool that each KV head reads."""

from tactic.kernels.index_map.naive import map_rows, read_mask

__all__ = ["map_rows", "read_mask"]
