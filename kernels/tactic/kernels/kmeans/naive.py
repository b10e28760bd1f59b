"""K-means in plain torch: the definition."""

import torch
from torch import Tensor

from tactic.kernels.index.clusters import Clusters
from tactic.kernels.index.units import MAX_SEGMENT_TOKENS, clusters_in
from tactic.kernels.kmeans.outliers import isolate_outliers, outliers_in
from tactic.kernels.kmeans.refill import refill_empty

_WORKSPACE_ELEMENTS = 1 << 24  # distances held at once, 64 MiB of fp32


def kmeans(
    keys: Tensor,
    cluster_size: int,
    *,
    max_iters: int = 5,
    seed: int = 0,
    init: Tensor | None = None,
) -> Clusters:
    """Clusters the n keys of each of B problems (layers x KV heads) into K = ceil(n / cluster_size).

    Lloyd's algorithm: random keys, Euclidean assignment, mean update, until nothing moves or `max_iters` is
    reached. Empty clusters take the keys that lie farthest from their centroids, so that none is lost. It
    runs over the first of the K clusters; each of the others gets one outlier in the end, see `outliers.py`.
    The result of a problem does not depend on the others in the call.

    Args:
        keys: `[B, n, d]`, any float dtype, 1 ≤ n ≤ 8192.
        cluster_size: average members of a cluster.
        max_iters: iterations at most, ≥ 1.
        seed: of the initial choice; the same keys' positions are drawn for all problems.
        init: `[B, K, d]` centroids to start from, e.g. of the last version, less those of outliers; random
            keys if None.

    Returns:
        The clusters. Centroids are the means of their members, in `centroid_dtype`; arithmetic is fp32.

    Raises:
        ValueError: n, max_iters or the shape of `init` is out of range.
    """
    problems, n, dim = keys.shape
    count = check_arguments(problems, n, dim, cluster_size, max_iters, init)
    points = keys.float()
    ordinary = count - outliers_in(count)
    if init is None:
        chosen = initial_positions(n, ordinary, seed).to(keys.device)
        centroids = points.index_select(1, chosen)
    else:
        centroids = init[:, :ordinary].float()

    previous: Tensor | None = None
    for _ in range(max_iters):
        labels, distances = _assign(points, centroids)
        refilled = labels.clone()
        refill_empty(refilled, distances.clone(), ordinary)
        if previous is not None and torch.equal(refilled, previous):
            break
        previous = refilled
        centroids = _scatter_mean(points, refilled, ordinary)
    isolate_outliers(labels, distances, count)
    refill_empty(labels, distances, count)
    centroids = _scatter_mean(points, labels, count)
    return _group(points, labels, centroids, centroid_dtype(keys.dtype))


def check_arguments(
    problems: int, n: int, dim: int, cluster_size: int, max_iters: int, init: Tensor | None
) -> int:
    """Number of clusters K, once the arguments of `kmeans` are known to be in range."""
    if not 1 <= n <= MAX_SEGMENT_TOKENS:
        raise ValueError(f"keys has n={n} positions, a segment has 1 … {MAX_SEGMENT_TOKENS}")
    if max_iters < 1:
        raise ValueError(f"max_iters={max_iters} must be at least 1")
    count = clusters_in(n, cluster_size)
    if init is not None and init.shape != (problems, count, dim):
        raise ValueError(f"init has shape {tuple(init.shape)}, expected {(problems, count, dim)}")
    return count


def centroid_dtype(keys: torch.dtype) -> torch.dtype:
    """What centroids of such keys are stored in: 8 bits would be too coarse for a mean."""
    return torch.bfloat16 if keys.itemsize == 1 else keys


def initial_positions(n: int, count: int, seed: int) -> Tensor:
    """The `count` of n positions whose keys are the first centroids, ascending, `[count]` int64 on CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(n, generator=generator)[:count].sort().values


def _assign(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest centroid of each point and the squared distance to it, both `[B, n]`, in bounded workspace.

    Distances are at least 0, which rounding may take them below.
    """
    problems, n, _ = points.shape
    norms = centroids.square().sum(-1)[:, None]
    step = max(1, _WORKSPACE_ELEMENTS // (problems * centroids.shape[1]))
    labels = torch.empty(problems, n, dtype=torch.int64, device=points.device)
    distances = torch.empty(problems, n, dtype=torch.float32, device=points.device)
    for begin in range(0, n, step):
        chunk = points[:, begin : begin + step]
        partial = torch.baddbmm(norms, chunk, centroids.mT, alpha=-2)
        best = partial.min(-1)
        labels[:, begin : begin + step] = best.indices
        distances[:, begin : begin + step] = (best.values + chunk.square().sum(-1)).clamp(min=0)
    return labels, distances


def _scatter_mean(points: Tensor, labels: Tensor, count: int) -> Tensor:
    """Mean of the points of each label, `[B, K, d]`; no label may be empty."""
    problems, _, dim = points.shape
    sums = points.new_zeros(problems, count, dim)
    sums.scatter_add_(1, labels[..., None].expand_as(points), points)
    return sums / _sizes(labels, count)[..., None]


def _sizes(labels: Tensor, count: int) -> Tensor:
    sizes = torch.zeros(labels.shape[0], count, dtype=torch.int64, device=labels.device)
    return sizes.scatter_add_(1, labels, torch.ones_like(labels))


def _group(points: Tensor, labels: Tensor, centroids: Tensor, dtype: torch.dtype) -> Clusters:
    """Sorts the positions by label and measures the spread."""
    count = centroids.shape[1]
    sizes = _sizes(labels, count)
    own = centroids.gather(1, labels[..., None].expand_as(points))
    squares = (points - own).square().sum(-1)
    spread = torch.zeros_like(sizes, dtype=torch.float32).scatter_add_(1, labels, squares) / sizes
    return Clusters(
        centroids=centroids.to(dtype),
        spread=spread,
        members=labels.argsort(dim=-1, stable=True).to(torch.int16),
        starts=(sizes.cumsum(-1) - sizes).to(torch.int32),
        sizes=sizes.to(torch.int32),
    )
