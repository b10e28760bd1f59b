"""Segment k-means: groups the keys of a segment by Euclidean distance (arXiv 2502.12216, section 4.1)."""

from tactic.kernels.kmeans.naive import kmeans

__all__ = ["kmeans"]
