"""What an estimator selects at each captured query, and what it is worth."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from tactic.kernels.estimators import Estimator, Evidence
from tactic.kernels.index import RequestIndex
from tactic.kernels.ranking import rank
from tactic.kernels.selection import select
from tactic.workers.evaluation.analysis.partitions import Partition
from tactic.workers.evaluation.analysis.samples import Ratio
from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.weights import oracle_count

ROUNDING = 1e-5  # of a share, in fp32 over a long context


@dataclass(frozen=True)
class IndexedStep:
    """Queries and the index they are ranked by; what is known before and after the keys are read.

    The H * G * m queries are handled as one step with G * m query heads per KV head: R rows, KV head first.

    Attributes:
        step: the queries and the keys that they see.
        index: clusters of the first positions.
        threshold: P.
    """

    step: Step
    index: RequestIndex
    threshold: float

    @cached_property
    def partition(self) -> Partition:
        """The index as labels of the positions."""
        return Partition.of_index(self.index)

    @cached_property
    def logits(self) -> Tensor:
        """True logits `[R, n]` fp32; -inf where a position is not visible."""
        return self.step.logits.flatten(0, 2)

    @cached_property
    def weights(self) -> Tensor:
        """True attention weights `[R, n]` fp32; a row sums to 1."""
        return self.logits.softmax(-1)

    @cached_property
    def always(self) -> Tensor:
        """Positions `[R]` int64 that are read in any case: sinks, and the tail up to the query."""
        visible = self.step.visible.sum(-1).expand(self.step.query.shape[:3]).flatten()
        return visible - self.index.ranks

    @cached_property
    def always_share(self) -> Tensor:
        """True share `[R]` fp32 of what is read in any case."""
        return self._always(self.weights).sum(-1)

    def evidence(self, estimator: Estimator) -> Evidence:
        """What the estimator is given, in the order that it is made for."""
        return self._by_weight if estimator.by_weight else self._by_centroid

    @cached_property
    def mass(self) -> Tensor:
        """True share of each cluster, `[R, K]` fp32."""
        return self.partition.mass(self.weights)

    @cached_property
    def sizes(self) -> Tensor:
        """Members of each cluster, `[R, K]` int64."""
        return self.index.sizes.repeat_interleave(len(self.weights) // len(self.index.sizes), 0)

    @cached_property
    def oracle(self) -> Tensor:
        """The fewest positions that hold P, `[R]` int64."""
        return oracle_count(self.weights, self.threshold)

    def choose(self, estimator: Estimator) -> Tensor:
        """Clusters that each row selects, `[R, K]` bool."""
        evidence = self.evidence(estimator)
        return select(evidence.ranking, estimator.ranks(evidence, self.threshold))

    def outcome(self, chosen: Tensor) -> "Outcome":
        """What reading the clusters `[R, K]` bool, the sinks and the tail is worth."""
        return Outcome(
            self.threshold,
            tokens=(self.sizes * chosen).sum(-1) + self.always,
            share=(self.mass * chosen).sum(-1) + self.always_share,
            oracle=self.oracle,
        )

    @cached_property
    def _by_centroid(self) -> Evidence:
        return self._evidence(by_weight=False)

    @cached_property
    def _by_weight(self) -> Evidence:
        return self._evidence(by_weight=True)

    def _evidence(self, *, by_weight: bool) -> Evidence:
        ranking = rank(self.step.query.flatten(0, 2), self.index, by_weight=by_weight)
        slot_ids = torch.arange(self.step.keys.shape[0], device=self.logits.device)
        return Evidence(ranking, self.step.keys, slot_ids, self._always(self.logits).logsumexp(-1))

    def _always(self, values: Tensor) -> Tensor:
        return torch.cat([values[:, : self.index.sinks], values[:, self.index.length :]], -1)


@dataclass(frozen=True)
class Outcome:
    """Figures of R cases, a case being one query of one head in one layer.

    Attributes:
        threshold: P that was asked for.
        tokens: `[R]` int64; positions selected, sinks and tail among them.
        share: `[R]` fp32; true share of the attention weight that they hold.
        oracle: `[R]` int64; the fewest positions that hold P.
    """

    threshold: float
    tokens: Tensor
    share: Tensor
    oracle: Tensor

    @classmethod
    def cat(cls, outcomes: "Sequence[Outcome]") -> "Outcome":
        """The cases of all of them."""
        names = [field.name for field in fields(cls) if field.name != "threshold"]
        joined = {name: torch.cat([getattr(one, name) for one in outcomes]) for name in names}
        return cls(outcomes[0].threshold, **joined)

    @property
    def success(self) -> Tensor:
        """Which cases reach P, `[R]` bool."""
        return self.share >= self.threshold - ROUNDING

    def summary(self) -> dict[str, float | Ratio]:
        """Means over all cases, and the low end of the share."""
        tokens, oracle = self.tokens.double().mean(), self.oracle.double().mean()
        return {
            "tokens": tokens.item(),
            "oracle": oracle.item(),
            "tokens / oracle": Ratio(tokens.item(), oracle.item()),
            "success": self.success.double().mean().item(),
            "share": self.share.double().mean().item(),
            "share p5": quantile(self.share, 0.05),
        }


def quantile(values: Tensor, share: float) -> float:
    """The value below which `share` of any number of values lies (lower neighbour)."""
    ordered = values.flatten().sort().values
    return float(ordered[int(share * (len(ordered) - 1))])
