"""Tactic's state inside one SGLang scheduler process, and what happens to it around each forward pass."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from tactic.kernels.estimators import estimator_id
from tactic.kernels.index import DecodeOptions
from tactic.kernels.kmeans import kmeans_pool
from tactic.kernels.upload import upload
from tactic.workers.config import BackendConfig
from tactic.workers.index.clock import WriteClock
from tactic.workers.index.memory import IndexShape, make_table
from tactic.workers.index.segment import Segment
from tactic.workers.index.store import IndexStore
from tactic.workers.refresh.deferred import Deferred
from tactic.workers.refresh.drift import DriftMonitor
from tactic.workers.refresh.link import SchedulerLink
from tactic.workers.refresh.messages import Gauges, Hello
from tactic.workers.refresh.pools import SharedPools, share_pools
from tactic.workers.refresh.refresher import Refresher
from tactic.workers.sglang.attention import Measured, make_attention
from tactic.workers.sglang.report import RequestMonitor
from tactic.workers.sharing.handles import NotSharedError

logger = logging.getLogger(__name__)

GAUGE_PERIOD_S = 1.0


@dataclass
class _Step:
    """What the layers of the present forward pass need, and what is to be counted after it."""

    building: dict[int, list[Segment]] = field(default_factory=lambda: defaultdict(list))
    building_slots: dict[int, torch.Tensor] = field(default_factory=dict)
    slots: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    padded: int = 0
    all_dense: bool = True
    measure: bool = False


class TacticRuntime:
    """Index store, refresher and counters of one tensor-parallel rank.

    `before_forward`, `on_cached` and `on_release` are called by hooks on SGLang's worker, prefix cache and
    request pool; `build` by the attention backend, once per layer.

    Args:
        runner: SGLang's ModelRunner, after its KV pool was made.
        config: from the decode worker.
    """

    def __init__(self, runner: Any, config: BackendConfig) -> None:
        self.config = config
        self.rank = int(runner.ps.tp_rank)
        self.pool = runner.token_to_kv_pool
        self.requests = runner.req_to_token_pool
        self._allocator = runner.token_to_kv_pool_allocator
        device = self._device = torch.device(runner.device)
        keys = self.pool.get_key_buffer(0)
        index = config.index
        shape = IndexShape(
            layers=self.pool.layer_num,
            kv_heads=keys.shape[1],
            head_dim=keys.shape[2],
            cluster_size=index.cluster_size,
        )
        kv_bytes = int(sum(self.pool.get_kv_size_bytes()))
        kv_tokens = self._kv_tokens = int(runner.max_total_num_tokens)
        units = shape.units(kv_tokens, kv_bytes // kv_tokens, index.memory_share)
        self.unit_bytes = shape.unit_bytes
        rows = self.requests.req_to_token.shape[0]
        self.clock = WriteClock(keys.shape[0], device)
        self.store = IndexStore(
            shape.arena(units, device),
            make_table(rows, self.requests.max_context_len, index.segment_size, device),
            self.clock,
            layers=shape.layers,
            segment_size=index.segment_size,
            min_tokens=8 * index.cluster_size,
        )
        self.options = DecodeOptions.create(
            rows,
            threshold=index.threshold,
            estimator=estimator_id(index.estimator),
            device=device,
            sinks=index.sinks,
            min_clustered=index.min_clustered,
        )
        self.link = SchedulerLink(config.link, self.rank) if config.link else None
        self.refresher = self._make_refresher()
        self.attention = make_attention(
            runner, self.store.arenas, self.store.table, self.options, estimator=index.estimator
        )
        self._read = torch.zeros(rows, self.pool.layer_num, device=device)
        self._selective: dict[int, bool] = {}
        self._drift = DriftMonitor()
        self._failures_logged = 0
        self._monitors: dict[int, RequestMonitor] = {}
        self._step = _Step()
        self._gauges_sent = 0.0
        index_bytes = units * self.unit_bytes
        logger.info(
            "Tactic index: %.2f GB beside a KV cache of %.2f GB (%.1f %%), segments of %d, clusters of %d",
            index_bytes / 1e9,
            kv_bytes / 1e9,
            100 * index_bytes / kv_bytes,
            index.segment_size,
            index.cluster_size,
        )
        if self.link is not None:
            self.link.send(Hello(self.rank, kv_tokens, index_bytes))

    def _make_refresher(self) -> Refresher | None:
        if self.link is None or not self.config.refresh.enabled:
            return None
        return Refresher(
            self.store,
            self.link,
            self.config.refresh,
            rank=self.rank,
            cluster_size=self.config.index.cluster_size,
            pools=self._share_pools(),
            read_keys=self._read_keys,
            slots_of=self._slots_of,
            deferred=Deferred(self._device),
        )

    def _share_pools(self) -> SharedPools | None:
        keys = [self.pool.get_key_buffer(layer) for layer in range(self.pool.layer_num)]
        try:
            return share_pools(keys, self.store.arena)
        except NotSharedError as error:
            logger.warning("clustering actors get keys sent, as they can't read them in place: %s", error)
            return None

    # Hooks -----------------------------------------------------------------------------------------------

    def before_forward(self, batch: Any) -> None:
        """Prepares a forward pass of SGLang's ScheduleBatch, on the forward stream, between two steps."""
        self._settle()
        if batch.forward_mode.is_idle():
            return
        self._poll_refreshes()
        self.clock.tick(batch.out_cache_loc)
        if batch.forward_mode.is_decode():
            for req, length in zip(batch.reqs, batch.seq_lens_cpu.tolist(), strict=True):
                self._prepare_decode(req, length)
        else:
            for req, prefix, new in zip(batch.reqs, batch.prefix_lens, batch.extend_lens, strict=True):
                self._prepare_extend(req, prefix, new)
            for length, segments in self._step.building.items():
                slots = torch.stack([segment.slots for segment in segments])
                self._step.building_slots[length] = upload(slots, self._device, torch.int64)
        if self.config.index.check_integrity:
            self.store.check_integrity()
        self._send_gauges()

    def on_cached(self, req: Any, slots: Callable[[], torch.Tensor]) -> None:
        """The prefix cache has taken over the first positions of a request, in `slots()` [n]."""
        row = self.store.row(*self._identity(req))
        if row is None:
            return
        row.takeovers += 1
        if row.clustered_length > row.settled:
            self.store.settle(row, slots()[row.settled :].to("cpu", torch.int32))

    def on_release(self, slot: int) -> None:
        """A request leaves its slot: finished, aborted or retracted."""
        if self._device.type == "cuda":
            # The scheduler may be a step ahead of the device, on another stream; this is once per request.
            torch.cuda.synchronize()
        self._settle()
        monitor = self._monitors.pop(slot, None)
        if monitor is not None and self.link is not None:
            self.link.send(monitor.report(self.rank, self._read[slot].cpu()))
            self._send_gauges(force=True)
        self._drift.forget(slot)
        self.store.release(slot)

    # Layers ----------------------------------------------------------------------------------------------

    @property
    def all_dense(self) -> bool:
        """No request of the present step wants the index, so the dense backend may run it."""
        return self._step.all_dense

    def build(self, layer: int) -> None:
        """Clusters this step's new segments in one layer, whose keys are in the pool."""
        keys = self.pool.get_key_buffer(layer)
        for length, segments in self._step.building.items():
            slots = self._step.building_slots[length]
            clusters = kmeans_pool(keys, slots, self.config.index.cluster_size, seed=layer)
            for segment, part in zip(segments, clusters.split(len(segments)), strict=True):
                self.store.arenas[layer].write(segment.unit, part)

    def begin_decode(self, slots: torch.Tensor, lengths: torch.Tensor) -> None:
        """Starts a decode step of request slots [B] with sequence lengths [B]; a graph may record it."""
        self.attention.begin(slots, lengths, measure=self._step.measure)

    def replay(self, padded: int) -> None:
        """The present step runs as a graph of `padded` requests, which always reads through the index."""
        self._step.padded = padded
        self._step.all_dense = False

    def _settle(self) -> None:
        """Counts what the last decode step read, once its layers are through."""
        step, self._step = self._step, _Step()
        if not step.slots:
            return
        slots = upload(step.slots, self._device)
        if step.all_dense:
            self._read[slots] += 1
            return
        lengths = upload(step.lengths, self._device)
        read = self.attention.read(step.padded or len(step.slots))[:, : len(step.slots)]
        self._read[slots] += (read.float().mean(-1) / lengths).T
        if step.measure:
            self._measure(step)

    def _measure(self, step: _Step) -> None:
        """Tells the attention share that the last step reached, of those requests for which it is wanted."""
        wanted = [
            Measured(row, slot, length)
            for row, (slot, length) in enumerate(zip(step.slots, step.lengths, strict=True))
            if self._monitors[slot].measured or self._drift.wants(slot)
        ]
        shares = self.attention.shares(step.padded or len(step.slots), wanted)
        for (_, slot, _), share in zip(wanted, shares.unbind(1), strict=True):
            if self._monitors[slot].measured:
                self._monitors[slot].shares.append(share.flatten())
            if self._drift.wants(slot):
                self._drift.measured(slot, float(share.mean()))

    # Requests --------------------------------------------------------------------------------------------

    def _prepare_extend(self, req: Any, prefix: int, new: int) -> None:
        slot, generation = self._identity(req)
        row = self.store.row(slot, generation)
        monitor = self._monitors.get(slot)
        if row is None or monitor is None:
            row = self.store.bind(slot, generation, req.rid, self._read_slots(slot, 0, prefix))
            monitor = self._monitors[slot] = RequestMonitor(req.rid)
            self._read[slot].zero_()
            monitor.tokens_reused = row.clustered_length
            self._set_options(slot, req)
        complete = prefix + new >= len(req.origin_input_ids) + len(req.output_ids)
        # The engine computes a prompt's last token anew even when all of it is cached: an index that ends
        # before it serves the same prompt again.
        end = prefix + new - complete
        added = self.store.extend(slot, row, self._read_slots(slot, 0, end), complete=complete)
        monitor.tokens_clustered += sum(segment.length for segment in added)
        for segment in added:
            self._step.building[segment.length].append(segment)

    def _prepare_decode(self, req: Any, length: int) -> None:
        slot, generation = self._identity(req)
        row, monitor = self.store.row(slot, generation), self._monitors.get(slot)
        if row is None or monitor is None:
            # Prefilled elsewhere: it has no index, and is read densely.
            row = self.store.bind(slot, generation, req.rid, torch.empty(0, dtype=torch.int32))
            monitor = self._monitors[slot] = RequestMonitor(req.rid)
            self._read[slot].zero_()
            self._set_options(slot, req)
        asked = self._wants_dense(req)
        dense = asked or row.clustered_length < self.options.min_clustered
        monitor.step(length, row.version, dense=dense)
        self._step.slots.append(slot)
        self._step.lengths.append(length)
        self._step.all_dense &= dense
        if self.refresher is not None and not asked:
            refreshing = self.refresher.step(slot, row, length - 1)
            if refreshing and self._selective[slot] and not dense:
                self._drift.asked(slot)
        self._step.measure |= not dense and (monitor.measured or self._drift.wants(slot))

    def _set_options(self, slot: int, req: Any) -> None:
        options = self._request_options(req)
        index = self.config.index
        self.options.choose(
            slot,
            threshold=options.get("threshold", index.threshold),
            estimator=estimator_id(options.get("estimator", index.estimator)),
            dense=self._wants_dense(req),
        )
        # True, or how many steps from one that is measured to the next.
        self._monitors[slot].measured_every = int(options.get("measure", False))
        self._selective[slot] = options.get("threshold", index.threshold) < 1

    def _wants_dense(self, req: Any) -> bool:
        return self._request_options(req).get("mode") == "dense"

    @staticmethod
    def _request_options(req: Any) -> dict[str, Any]:
        options: dict[str, Any] = (req.sampling_params.custom_params or {}).get("tactic", {})
        return options

    def _identity(self, req: Any) -> tuple[int, int]:
        slot = int(req.req_pool_idx)
        return slot, int(self.requests.req_generation[slot])

    # Reads of SGLang's pools -----------------------------------------------------------------------------

    def _slots_of(self, slot: int, start: int, end: int) -> torch.Tensor:
        slots: torch.Tensor = self.requests.req_to_token[slot, start:end]
        return slots

    def _read_slots(self, slot: int, start: int, end: int) -> torch.Tensor:
        return self._slots_of(slot, start, end).to("cpu", torch.int32, copy=True)

    def _read_keys(self, slots: torch.Tensor) -> torch.Tensor:
        at = slots.to(self._device, torch.int64)
        first = self.pool.get_key_buffer(0)
        heads, dim = first.shape[1:]
        keys: torch.Tensor = first.new_empty(self.pool.layer_num, heads, len(at), dim)
        for layer, into in enumerate(keys):
            into.copy_(self.pool.get_key_buffer(layer)[at].transpose(0, 1))
        return keys

    # Refresh and counters --------------------------------------------------------------------------------

    def _poll_refreshes(self) -> None:
        if self.refresher is None:
            return
        for slot, generation, reason in self.refresher.poll():
            if reason:
                logger.info("refresh of request slot %d dropped: %s", slot, reason)
            if self.store.row(slot, generation) is None:
                continue  # that request has ended, and another may have its slot
            self._drift.ended(slot, published=not reason)
            monitor = self._monitors.get(slot)
            if monitor is not None:
                monitor.refreshes += not reason
                monitor.refreshes_dropped += bool(reason)

    def _send_gauges(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.link is None or (now - self._gauges_sent < GAUGE_PERIOD_S and not force):
            return
        self._gauges_sent = now
        counters, refresher = self.store.counters, self.refresher
        if counters.allocation_failures > self._failures_logged:
            self._failures_logged = counters.allocation_failures
            logger.warning(
                "the index's memory is full: %d segments so far found no room, and their positions are read "
                "exactly; raise index.memory_share or serve fewer requests at once",
                counters.allocation_failures,
            )
        self.link.send(
            Gauges(
                rank=self.rank,
                kv_tokens_used=self._kv_tokens - self._allocator.available_size(),
                index_bytes_used=self.store.units_used * self.unit_bytes,
                segments=len(self.store.segments),
                segments_evicted=counters.segments_evicted,
                segments_stale=counters.segments_stale,
                allocation_failures=counters.allocation_failures,
                tokens_clustered=counters.tokens_clustered,
                tokens_index_reused=counters.tokens_reused,
                refreshes_requested=refresher.requested if refresher else 0,
                refreshes_published=refresher.published if refresher else 0,
                refreshes_in_place=refresher.in_place if refresher else 0,
                refreshes_dropped=dict(refresher.dropped) if refresher else {},
                drift=self._drift.sums,
            )
        )
