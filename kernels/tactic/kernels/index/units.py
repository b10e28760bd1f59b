"""How much room an index needs: segments take whole units of the arena."""

UNIT_TOKENS = 512
MAX_SEGMENT_TOKENS = 8192
CLUSTER_SIZES = (16, 32, 64)


def units_in(tokens: int) -> int:
    """Arena units that a segment of `tokens` positions takes."""
    return -(-tokens // UNIT_TOKENS)


def clusters_in(tokens: int, cluster_size: int) -> int:
    """Clusters of a segment of `tokens` positions, `cluster_size` positions each on average."""
    return -(-tokens // cluster_size)
