"""The decode chain on a GPU: fixed shapes, no host sync, fit for CUDA graphs."""

from dataclasses import dataclass

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

_FIT = Fit()


@dataclass(frozen=True)
class DecodeRunner:
    """Buffers for one batch size, shared by all layers. Call `plan` once a step, then `run` for each layer.

    Estimators are `centroid` and, unless left out, `fit`; a request with another one reads everything.

    Attributes:
        cluster_size: of the arenas.
        splits: programs that share the work of a (request, KV head) pair.
        fit: settings of that estimator; None saves the launches of its kernels.
    """

    cluster_size: int
    splits: int
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
        splits = max(1, min(64, 2 * processors // (batch * kv_heads)))
        step = StepPlan.create(
            batch=batch, segments=segments, context=context, cluster_size=cluster_size, device=device
        )
        clusters = step.rows.shape[1]

        def fp32(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=device)

        return cls(
            cluster_size=cluster_size,
            splits=splits,
            fit=fit,
            step=step,
            scores=Scores.create(
                batch=batch,
                query_heads=query_heads,
                kv_heads=kv_heads,
                clusters=clusters,
                readers=max(1, splits // 4),
                device=device,
            ),
            marks=create_marks(batch, query_heads, device),
            cuts=fp32(batch, query_heads),
            reads=Reads.create(
                batch=batch, query_heads=query_heads, kv_heads=kv_heads, clusters=clusters, device=device
            ),
            indices=torch.zeros(batch * kv_heads * context, dtype=torch.int32, device=device),
            indptr=torch.zeros(batch * kv_heads + 1, dtype=torch.int32, device=device),
            partial=fp32(batch, query_heads, splits, head_dim),
            partial_lse=fp32(batch, query_heads, splits),
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
