"""The decode chain on a GPU: fixed shapes, no host sync, fit for CUDA graphs."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from tactic.kernels.decode.result import DecodeResult
from tactic.kernels.estimators import Fit
from tactic.kernels.estimators.triton import CENTROID, FIT, create_marks, sample
from tactic.kernels.index.arena import LayerArena
from tactic.kernels.index.options import DecodeOptions
from tactic.kernels.index.step import StepPlan
from tactic.kernels.index.table import SegmentTable
from tactic.kernels.index.triton import plan_step
from tactic.kernels.index_map.triton import write_rows
from tactic.kernels.ranking.triton import Scores, score
from tactic.kernels.selection.triton import find_cuts, find_fit_cuts
from tactic.kernels.sparse_decode.triton import sparse_decode_triton
from tactic.kernels.union.triton import Reads, unite_cuts

_Buffers = TypeVar("_Buffers", StepPlan, Scores, Reads)
_FIT = Fit()
_READERS = 16  # programs that share sinks and tail
_MOST_SPLITS = 64
_LEAST_SPLITS = 16  # so that one long list in a large batch is shared out, too


@dataclass(frozen=True)
class DecodeRunner:
    """Buffers for one batch size, shared by all layers. Call `plan` once a step, then `run` for each layer.

    Estimators are `centroid` and, unless left out, `fit`; a request with another one reads everything.

    Attributes:
        cluster_size: of the arenas.
        processors: multiprocessors of the device.
        fit: settings of that estimator; None saves the launches of its kernels.
    """

    cluster_size: int
    processors: int
    fit: Fit | None
    step: StepPlan
    scores: Scores
    marks: Tensor
    cuts: Tensor
    reads: Reads
    indices: Tensor
    indptr: Tensor
    partial: Tensor
    partial_lse: Tensor

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
        clusters = step.rows.shape[1]
        parts = query_heads * max(n * _splits(n, kv_heads, processors) for n in range(1, batch + 1))

        def fp32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=device)

        return cls(
            cluster_size=cluster_size,
            processors=processors,
            fit=fit,
            step=step,
            scores=Scores.create(
                batch=batch,
                query_heads=query_heads,
                kv_heads=kv_heads,
                clusters=clusters,
                readers=_READERS,
                device=device,
            ),
            marks=create_marks(batch, query_heads, device),
            cuts=fp32(batch, query_heads),
            reads=Reads.create(
                batch=batch, query_heads=query_heads, kv_heads=kv_heads, clusters=clusters, device=device
            ),
            indices=torch.zeros(batch * kv_heads * context, dtype=torch.int32, device=device),
            indptr=torch.zeros(batch * kv_heads + 1, dtype=torch.int32, device=device),
            partial=fp32(parts, head_dim),
            partial_lse=fp32(parts),
        )

    @property
    def splits(self) -> int:
        """Programs that share the work of a (request, KV head) pair."""
        batch, kv_heads = self.reads.lengths.shape
        return _splits(batch, kv_heads, self.processors)

    def shrink(self, batch: int) -> "DecodeRunner":
        """A runner for fewer requests in the same memory; only one of the two may be in use at a time."""
        pairs = batch * self.reads.lengths.shape[1]
        return replace(
            self,
            step=_head(self.step, batch),
            scores=_head(self.scores, batch),
            reads=_head(self.reads, batch),
            marks=self.marks[:batch],
            cuts=self.cuts[:batch],
            indptr=self.indptr[: pairs + 1],
        )

    def plan(
        self, table: SegmentTable, options: DecodeOptions, request_slots: Tensor, seq_lens: Tensor
    ) -> None:
        """Reads the table and the options of the batch's requests; once a step."""
        served = range(CENTROID if self.fit is None else FIT, CENTROID + 1)
        plan_step(self.step, table, options, request_slots, seq_lens, self.cluster_size, estimators=served)

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
    ) -> tuple[DecodeResult, Tensor]:
        """Attention of one layer; arguments as for `decode`.

        Returns:
            The result (`read` and `selected` are buffers that the next layer overwrites) and the log-sum-exp
            `[B, Hq]` fp32.
        """
        self.select(q, k_pool, req_to_token, arena, scale=scale, sinks=sinks)
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
        sparse_decode_triton(
            q,
            k_pool,
            v_pool,
            self.indices,
            self.indptr,
            scale,
            partial=self.partial,
            partial_lse=self.partial_lse,
            splits=self.splits,
            out=out,
            lse=lse,
        )
        return DecodeResult(out, self.reads.lengths, self.reads.selected, None), lse

    def select(
        self,
        q: Tensor,
        k_pool: Tensor,
        req_to_token: Tensor,
        arena: LayerArena,
        *,
        scale: float,
        sinks: int,
    ) -> None:
        """Fills `indices` and `indptr` with what each KV head reads."""
        score(
            self.scores,
            self.step,
            arena,
            q,
            k_pool,
            req_to_token,
            scale=scale,
            sinks=sinks,
            scorers=self.splits,
        )
        find_cuts(self.cuts, self.scores, self.step)
        if self.fit is not None:
            sample(
                self.marks,
                self.scores,
                self.step,
                arena,
                q,
                k_pool,
                req_to_token,
                self.fit,
                scale=scale,
                sinks=sinks,
                samplers=self.splits,
            )
            find_fit_cuts(self.cuts, self.marks, self.scores, self.step)
        unite_cuts(self.reads, self.cuts, self.scores, self.step, sinks=sinks)
        write_rows(
            self.indices,
            self.indptr,
            self.reads,
            self.scores,
            self.step,
            arena,
            req_to_token,
            sinks=sinks,
            writers=self.splits,
        )


def _splits(batch: int, kv_heads: int, processors: int) -> int:
    return max(_LEAST_SPLITS, min(_MOST_SPLITS, 2 * processors // (batch * kv_heads)))


def _head(buffers: _Buffers, batch: int) -> _Buffers:
    """The first `batch` entries of every array."""
    return type(buffers)(*(getattr(buffers, field.name)[:batch] for field in fields(buffers)))
