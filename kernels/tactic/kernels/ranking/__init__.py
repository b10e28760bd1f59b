"""Cluster order: ranks a request's clustered positions for each query head."""

from tactic.kernels.ranking.naive import Ranking, rank

__all__ = ["Ranking", "rank"]
