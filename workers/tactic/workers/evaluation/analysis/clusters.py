"""Question (d): how good the clusters are, beside positional blocks and k-means without segments."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from tactic.workers.evaluation.analysis.capture import Capture
from tactic.workers.evaluation.analysis.partitions import Partition, global_kmeans
from tactic.workers.evaluation.analysis.question import CaptureQuestion
from tactic.workers.evaluation.analysis.result import Cell, Table
from tactic.workers.evaluation.analysis.samples import INTERVALS, Ratio, Samples
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.weights import oracle_count, oracle_cut

MULTIPLES = (1, 2, 4)
"""Of the oracle's number of positions: how many ranks are looked at for the recall."""
_SAMPLED_KEYS = 128


@dataclass
class ClusterQuality(CaptureQuestion):
    """Silhouette, rank recall and what a perfect estimate on each order has to read.

    Attributes:
        threshold: P.
        cluster_size: average members of a cluster.
    """

    name: ClassVar[str] = "clusters"
    threshold: float
    cluster_size: int = 32
    _by_context: Samples = field(default_factory=Samples)
    _by_text: Samples = field(default_factory=Samples)

    def add(self, capture: Capture) -> None:
        """See `CaptureQuestion.add`."""
        sums: dict[str, dict[str, float]] = {}
        for step in capture.layers:
            for name, partition in self._partitions(step).items():
                figures = self._figures(step, partition, capture.seed)
                kept = sums.setdefault(name, dict.fromkeys(figures, 0.0))
                for key, value in figures.items():
                    kept[key] += value / len(capture.layers)
        for name, kept in sums.items():
            values: dict[str, float | Ratio] = {
                **kept,
                "perfect / oracle": Ratio(kept["perfect"], kept["oracle"]),
            }
            condition: dict[str, Cell] = {"context": capture.context, "clusters": name}
            self._by_context.add(capture.text, condition, values)
            self._by_text.add(capture.text, {"text": capture.text, **condition}, values)

    def tables(self) -> Sequence[Table]:
        """See `Answer.tables`."""
        note = (
            "What was asked: whether keys of one cluster belong together, and whether the order of clusters "
            f"finds what the oracle reads at P = {self.threshold}, average size {self.cluster_size}. "
            f"Silhouette: of {_SAMPLED_KEYS} keys per head against all clusters, -1 … 1. Recall at m times: "
            "share of the oracle's positions among the first m times as many ranks, sinks and tail left out. "
            "Perfect: positions that a perfect estimate on this order reads, sinks and tail included. "
            f"{INTERVALS}"
        )
        return [
            Table("Clusters by context length", note, self._by_context.rows()),
            Table("Clusters by text", "The same figures by text.", self._by_text.rows()),
        ]

    def _partitions(self, step: Step) -> dict[str, Partition]:
        size = self.cluster_size
        return {
            "k-means, segments": Partition.of_index(step.layer.structure(BuildIndex(size)).clusters),
            "k-means, global": global_kmeans(step.layer.keys, size),
            "positional blocks": Partition.of_index(
                step.layer.structure(BuildIndex(size, grouping="positional")).clusters
            ),
        }

    def _figures(self, step: Step, partition: Partition, seed: int) -> dict[str, float]:
        heads, group, steps, _ = step.query.shape
        weights = torch.exp(step.logits - step.total[..., None]).flatten(0, 2)
        ranked = partition.without(step.layer.sinks)
        scores = torch.bmm(step.query.flatten(1, 2), partition.centroids.mT).flatten(0, 1)
        order = scores.argsort(-1, descending=True)
        sizes = ranked.sizes.repeat_interleave(group * steps, 0).gather(1, order)
        always = step.visible.sum(-1).expand(heads, group, steps).flatten() - sizes.sum(-1)
        mass = ranked.mass(weights).gather(1, order)
        always_share = 1 - mass.sum(-1)
        needed = (always_share[:, None] + mass.cumsum(-1) - mass < self.threshold) * sizes
        wanted = (weights >= oracle_cut(weights, self.threshold)).float()
        recalls = rank_recall(ranked.mass(wanted).gather(1, order), sizes, MULTIPLES)
        return {
            "silhouette": silhouette(step.keys, ranked, seed).mean().item(),
            **{f"recall at {multiple}x": value for multiple, value in zip(MULTIPLES, recalls, strict=True)},
            "oracle": oracle_count(weights, self.threshold).double().mean().item(),
            "perfect": (needed.sum(-1) + always).double().mean().item(),
        }


def rank_recall(wanted: Tensor, sizes: Tensor, multiples: Sequence[int]) -> list[float]:
    """Share of the wanted positions among the first ranks, m times as many as are wanted; clusters whole.

    Args:
        wanted: `[R, K]`, wanted positions in each cluster, in order.
        sizes: `[R, K]` int64, all positions of each cluster, in order.
        multiples: the values of m.

    Returns:
        For each m the mean over the rows that want any position; 1 if none does.
    """
    total = wanted.sum(-1, keepdim=True)
    some = total.squeeze(-1) > 0
    if not some.any():
        return [1.0 for _ in multiples]
    before = sizes.cumsum(-1) - sizes
    return [
        float((((before < multiple * total) * wanted).sum(-1) / total.squeeze(-1))[some].mean())
        for multiple in multiples
    ]


def silhouette(keys: Tensor, partition: Partition, seed: int) -> Tensor:
    """Silhouette of sampled keys, exact against all clusters, Euclidean; 0 for the only key of a cluster.

    Args:
        keys: `[n, H, d]`.
        partition: of the first positions.
        seed: of the sample; positions in no cluster are not drawn.

    Returns:
        `[H, s]` fp32.
    """
    heads, length = partition.labels.shape
    inside = (partition.labels[0] < partition.count).nonzero().squeeze(-1)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(inside), generator=generator)[:_SAMPLED_KEYS].to(keys.device)
    at = inside[drawn]
    points = keys[:length].transpose(0, 1).float()
    distances = torch.cdist(points[:, at], points).flatten(0, 1)
    sums = partition.mass(distances).view(heads, len(at), -1)
    own = partition.labels[:, at]
    sizes = partition.sizes
    own_size = sizes.gather(1, own)
    inner = sums.gather(2, own[..., None]).squeeze(-1) / (own_size - 1).clamp(min=1)
    others = (sums / sizes[:, None].clamp(min=1)).masked_fill((sizes == 0)[:, None], torch.inf)
    outer = others.scatter(2, own[..., None], torch.inf).amin(-1)
    values = (outer - inner) / torch.maximum(outer, inner).clamp(min=torch.finfo(torch.float32).tiny)
    return values.where((own_size > 1) & outer.isfinite(), 0)
