"""The decode chain on a GPU: fixed shapes, no host sync, fit for CUDA graphs."""

from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from tactic.kernels.decode.result import DecodeResult
from tactic.kernels.estimators import Centroid, Fit, Guarded, estimator_id
from tactic.kernels.estimators.triton import Samples, sample
from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.options import DecodeOptions
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index.table import SegmentTable
from tactic.kernels.index.triton import plan_step
from tactic.kernels.index_map.reads import Reads
from tactic.kernels.index_map.triton import Listing, list_slots
from tactic.kernels.ranking.triton import Scores, score
from tactic.kernels.selection.fit_triton import select_by_fit
from tactic.kernels.selection.triton import select
from tactic.kernels.sparse_decode.always import attend_always
from tactic.kernels.sparse_decode.merge import merge
from tactic.kernels.sparse_decode.partials import Partials
from tactic.kernels.sparse_decode.trace import Trace
from tactic.kernels.sparse_decode.triton import attend

_Buffers = TypeVar("_Buffers", StepPlan, Scores, Samples, Reads)
_FIT = Fit()
_ESTIMATORS = (Guarded.name, Centroid.name)
_WAVES = 2  # programs per multiprocessor that run at once
_SCORE_WAVES = 16  # of those that score
_LIST_WAVES = 4  # of those that list
_MOST_SPLITS = 32
_LEAST_SPLITS = 8  # so that one long request in a large batch is shared out, too


@dataclass(frozen=True)
class DecodeRunner:
    """Buffers for one batch size, shared by all layers. Call `plan` once a step, then `run` for each layer.

    Serves `guarded`, `centroid` and, unless left out, `fit`; requests with another estimator read everything.

    Attributes:
        cluster_size: of the arenas.
        processors: multiprocessors of the device.
        fit: settings of that estimator; None saves the launches of its kernels.
        samples: what `fit` measures; None without it.
    """

    cluster_size: int
    processors: int
    fit: Fit | None
    step: StepPlan
    scores: Scores
    samples: Samples | None
    reads: Reads
    listing: Listing
    partials: Partials
    trace: Trace

    @classmethod
    def create(
        cls,
        *,
        batch: int,
        query_heads: int,
        kv_heads: int,
        head_dim: int,
        context: int,
        segments: int,
        cluster_size: int,
        device: torch.device | str,
        processors: int = 132,
        fit: Fit | None = _FIT,
    ) -> "DecodeRunner":
        """Allocates for `batch` requests of at most `context` positions in at most `segments` segments each.

        Args:
            batch: requests of every call.
            query_heads: Hq.
            kv_heads: H.
            head_dim: d.
            context: positions of a request at most.
            segments: columns of the segment table.
            cluster_size: of the arenas.
            device: where.
            processors: multiprocessors of the device, for sharing out the work.
            fit: settings of the estimator `fit`; None if no request will use it.
        """
        step = StepPlan.create(
            batch=batch, segments=segments, context=context, cluster_size=cluster_size, device=device
        )
        clusters = step.begins.shape[1]
        splits = _splits(batch * kv_heads, processors)
        # A smaller batch is cut into more parts.
        parts = max(n * _splits(n * kv_heads, processors) for n in range(1, batch + 1))
        heads: dict[str, Any] = {"batch": batch, "query_heads": query_heads, "device": device}
        return cls(
            cluster_size=cluster_size,
            processors=processors,
            fit=fit,
            step=step,
            scores=Scores.create(
                kv_heads=kv_heads,
                clusters=clusters,
                blocks=step.block_rows.shape[1],
                keys=fit is not None,
                **heads,
            ),
            samples=None if fit is None else Samples.create(clusters=clusters, **heads),
            reads=Reads.create(kv_heads=kv_heads, context=context, **heads),
            listing=Listing.create(
                batch=batch,
                kv_heads=kv_heads,
                clusters=clusters,
                programs=_LIST_WAVES * processors,
                device=device,
            ),
            partials=Partials.create(
                rows=2 * query_heads * parts,
                head_dim=head_dim,
                splits=splits,
                readers=splits,
                device=device,
            ),
            trace=Trace.create(batch, query_heads, head_dim, device=device),
        )

    @property
    def batch(self) -> int:
        """Requests of a call."""
        return self.reads.lengths.shape[0]

    @property
    def scorers(self) -> int:
        """Programs that share a KV head's clusters when they are scored."""
        batch, kv_heads = self.reads.lengths.shape
        return max(1, _SCORE_WAVES * self.processors // (batch * kv_heads))

    def shrink(self, batch: int) -> "DecodeRunner":
        """A runner for fewer requests in the same memory; only one of the two may be in use at a time."""
        kv_heads, clusters = self.scores.sizes.shape[1:]
        splits = _splits(batch * kv_heads, self.processors)
        return replace(
            self,
            step=_head(self.step, batch),
            scores=_head(self.scores, batch),
            samples=None if self.samples is None else _head(self.samples, batch),
            reads=_head(self.reads, batch),
            listing=self.listing.shrink(
                batch=batch,
                kv_heads=kv_heads,
                clusters=clusters,
                programs=_LIST_WAVES * self.processors,
            ),
            trace=self.trace.head(batch),
            partials=replace(self.partials, splits=splits, readers=splits),
        )

    def plan(
        self, table: SegmentTable, options: DecodeOptions, request_slots: Tensor, seq_lens: Tensor
    ) -> None:
        """Reads the table and the options of the batch's requests; once a step."""
        served = (*_ESTIMATORS, *(() if self.fit is None else (Fit.name,)))
        plan_step(
            self.step,
            table,
            options,
            request_slots,
            seq_lens,
            self.cluster_size,
            estimators=[estimator_id(name) for name in served],
        )

    def run(
        self,
        q: Tensor,
        k_pool: Tensor,
        v_pool: Tensor,
        req_to_token: Tensor,
        arena: LayerArena,
        *,
        scale: float,
        sinks: int,
    ) -> DecodeResult:
        """Attention of one layer; arguments as for `decode`.

        Returns:
            The result; `read` and `selected`, as `trace`, are buffers that the next layer overwrites.
        """
        out = torch.empty_like(q)
        attend_always(
            self.partials, self.reads, self.step, q, k_pool, v_pool, req_to_token, scale=scale, sinks=sinks
        )
        score(self.scores, self.step, arena, q, scale=scale, sinks=sinks, scorers=self.scorers)
        select(self.reads, self.scores, self.partials, self.step, sinks=sinks)
        if self.fit is not None and self.samples is not None:
            sample(
                self.samples,
                self.scores,
                self.step,
                arena,
                q,
                k_pool,
                req_to_token,
                self.fit,
                scale=scale,
                sinks=sinks,
                samplers=self.partials.splits,
            )
            select_by_fit(self.reads, self.samples, self.scores, self.partials, self.step)
        list_slots(self.reads, self.listing, self.scores, self.step, arena, req_to_token, sinks=sinks)
        attend(
            self.partials,
            self.reads,
            self.listing,
            self.step,
            q,
            k_pool,
            v_pool,
            req_to_token,
            scale=scale,
            sinks=sinks,
        )
        merge(self.partials, self.trace, self.step, q, out)
        return DecodeResult(out, self.reads.lengths, self.reads.selected, None)


def _splits(pairs: int, processors: int) -> int:
    """Programs that share what is read for a (request, KV head) pair."""
    return max(_LEAST_SPLITS, min(_MOST_SPLITS, _WAVES * processors // pairs))


def _head(buffers: _Buffers, batch: int) -> _Buffers:
    """The first `batch` entries of every array."""
    return type(buffers)(*(getattr(buffers, field.name)[:batch] for field in fields(buffers)))
