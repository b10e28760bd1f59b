"""Sparse decode attention of a whole batch, layer by layer: one face for the CPU's and the GPU's chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from tactic.kernels.decode import decode
from tactic.kernels.decode.runner import DecodeRunner
from tactic.kernels.estimators import Fit
from tactic.kernels.index import DecodeOptions, LayerArena, SegmentTable
from tactic.kernels.sparse_decode.trace import Trace


class Measured(NamedTuple):
    """A request of a step: its place in the batch, its request slot, its length with the current token."""

    row: int
    slot: int
    length: int


class SparseAttention(ABC):
    """Reads SGLang's KV pool through the index.

    Args:
        pool: SGLang's MHATokenToKVPool.
        req_to_token: slot ids by request slot and position, [R, max_context] int32.
        arenas: one per layer.
        table: segments by request slot.
        options: by request slot.
    """

    def __init__(
        self,
        pool: Any,
        req_to_token: torch.Tensor,
        arenas: Sequence[LayerArena],
        table: SegmentTable,
        options: DecodeOptions,
    ) -> None:
        self.pool = pool
        self.req_to_token = req_to_token
        self.arenas = arenas
        self.table = table
        self.options = options

    @abstractmethod
    def begin(self, slots: torch.Tensor, lengths: torch.Tensor, *, measure: bool) -> None:
        """Starts a step for request slots [B] with sequence lengths [B], the current token included."""

    @abstractmethod
    def layer(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """Attention of one layer, [B, Hq, d] → [B, Hq, d]; the new keys and values are in the pool."""

    @abstractmethod
    def read(self, batch: int) -> torch.Tensor:
        """Positions that each KV head read in the last step of this batch size, [L, B, H] int32."""

    @abstractmethod
    def shares(self, batch: int, requests: Sequence[Measured]) -> torch.Tensor:
        """Attention share that requests of the last step reached, [L, len(requests), Hq] fp32.

        Args:
            batch: of the step, padding included; it was begun with `measure`.
            requests: which.
        """


class NaiveAttention(SparseAttention):
    """Plain torch, for the CPU platform."""

    def begin(self, slots: torch.Tensor, lengths: torch.Tensor, *, measure: bool) -> None:
        """See the base class."""
        self._slots, self._lengths, self._measure = slots, lengths, measure
        self._results: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def layer(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """See the base class."""
        result = decode(
            q,
            self.pool.get_key_buffer(layer),
            self.pool.get_value_buffer(layer),
            self.req_to_token,
            self._slots,
            self._lengths,
            self.table,
            self.arenas[layer],
            self.options,
            scale=scale,
            measure=self._measure,
        )
        self._results.append((result.read, result.share))
        return result.out

    def read(self, batch: int) -> torch.Tensor:
        """See the base class."""
        return torch.stack([read for read, _ in self._results])

    def shares(self, batch: int, requests: Sequence[Measured]) -> torch.Tensor:
        """See the base class."""
        shares = torch.stack([share for _, share in self._results if share is not None])
        return shares[:, [request.row for request in requests]]


class CompiledAttention(SparseAttention):
    """Triton kernels of fixed shapes that never ask the host, fit for CUDA graphs.

    Every step leaves a trace from which shares can be told, so `measure` changes nothing.

    Args:
        pool: as for the base class.
        req_to_token: as for the base class.
        arenas: as for the base class.
        table: as for the base class.
        options: as for the base class.
        query_heads: of this rank.
        dtype: of the queries.
        processors: multiprocessors of the device.
        fit: settings of the estimator `fit`; None saves its launches, and requests for it read everything.
    """

    def __init__(
        self,
        pool: Any,
        req_to_token: torch.Tensor,
        arenas: Sequence[LayerArena],
        table: SegmentTable,
        options: DecodeOptions,
        *,
        query_heads: int,
        dtype: torch.dtype,
        processors: int,
        fit: Fit | None,
    ) -> None:
        super().__init__(pool, req_to_token, arenas, table, options)
        self._query_heads = query_heads
        self._dtype = dtype
        self._processors = processors
        self._fit = fit
        # Of the largest batch so far, whose memory the smaller ones share.
        self._whole: DecodeRunner | None = None
        self._runners: dict[int, list[DecodeRunner]] = {}
        self._read: dict[int, torch.Tensor] = {}
        self._traces: list[Trace] = []
        self._scale = 1.0
        self._current: list[DecodeRunner] = []

    def begin(self, slots: torch.Tensor, lengths: torch.Tensor, *, measure: bool) -> None:
        """See the base class. May be recorded into a graph, once the batch size has been seen."""
        batch = len(slots)
        if batch not in self._runners:
            self._prepare(batch)
        self._current = self._runners[batch]
        self._current[0].plan(self.table, self.options, slots, lengths)

    def layer(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """See the base class."""
        self._scale = scale
        result = self._current[layer].run(
            q.contiguous(),
            self.pool.get_key_buffer(layer),
            self.pool.get_value_buffer(layer),
            self.req_to_token,
            self.arenas[layer],
            scale=scale,
            sinks=self.options.sinks,
        )
        return result.out

    def read(self, batch: int) -> torch.Tensor:
        """See the base class."""
        return self._read[batch]

    def shares(self, batch: int, requests: Sequence[Measured]) -> torch.Tensor:
        """See the base class. Reads all keys of the requests; the step's own tokens must not have moved."""
        return torch.stack(
            [self._layer_shares(runner, i, requests) for i, runner in enumerate(self._runners[batch])]
        )

    def _layer_shares(self, runner: DecodeRunner, layer: int, requests: Sequence[Measured]) -> torch.Tensor:
        keys = self.pool.get_key_buffer(layer)
        shares = [
            runner.trace.share(row, keys, self.req_to_token[slot, :length], self._scale)
            for row, slot, length in requests
        ]
        return torch.stack(shares)

    def _prepare(self, batch: int) -> None:
        """One runner's buffers serve all layers, but each layer keeps what it read, and its trace."""
        arena = self.arenas[0]
        heads, _, dim = arena.codes.shape
        device = arena.codes.device
        if self._whole is None or batch > self._whole.batch:
            self._whole = DecodeRunner.create(
                batch=batch,
                query_heads=self._query_heads,
                kv_heads=heads,
                head_dim=dim,
                context=self.req_to_token.shape[1],
                segments=self.table.unit.shape[1],
                cluster_size=arena.cluster_size,
                device=device,
                processors=self._processors,
                fit=self._fit,
            )
            self._traces = [
                Trace.create(batch, self._query_heads, dim, dtype=self._dtype, device=device)
                for arena in self.arenas
            ]
        runner = self._whole.shrink(batch)
        read = torch.zeros(len(self.arenas), batch, heads, dtype=torch.int32, device=device)
        self._read[batch] = read
        self._runners[batch] = [
            replace(runner, reads=replace(runner.reads, lengths=lengths), trace=trace.head(batch))
            for lengths, trace in zip(read, self._traces, strict=True)
        ]


def make_attention(
    runner: Any,
    arenas: Sequence[LayerArena],
    table: SegmentTable,
    options: DecodeOptions,
    *,
    estimator: str,
) -> SparseAttention:
    """The chain for the device of SGLang's ModelRunner; `estimator` is that of requests that name none."""
    parts = (runner.token_to_kv_pool, runner.req_to_token_pool.req_to_token, arenas, table, options)
    device = arenas[0].codes.device
    if device.type != "cuda":
        return NaiveAttention(*parts)
    return CompiledAttention(
        *parts,
        query_heads=runner.model_config.num_attention_heads // runner.ps.tp_size,
        dtype=runner.dtype,
        processors=torch.cuda.get_device_properties(device).multi_processor_count,
        fit=Fit.from_options(options) if estimator == Fit.name else None,
    )
