"""The clustered index of one layer: storage, table of segments, options, one request's view."""

from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.clusters import Clusters
from tactic.kernels.index.options import DecodeOptions
from tactic.kernels.index.request import RequestIndex
from tactic.kernels.index.table import SegmentTable
from tactic.kernels.index.units import (
    CLUSTER_SIZES,
    MAX_SEGMENT_TOKENS,
    UNIT_TOKENS,
    clusters_in,
    units_in,
)

__all__ = [
    "CLUSTER_SIZES",
    "MAX_SEGMENT_TOKENS",
    "UNIT_TOKENS",
    "Clusters",
    "DecodeOptions",
    "LayerArena",
    "RequestIndex",
    "SegmentTable",
    "clusters_in",
    "units_in",
]
