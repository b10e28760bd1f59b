"""What the scheduler processes and the decode worker say to each other.

Every message is msgpack in one ZeroMQ frame; tensors follow in frames of their own, described by TensorSpec.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import torch

from tactic.workers.refresh.pools import SharedPools

Frames = list[np.ndarray[Any, np.dtype[np.uint8]]]
"""Bytes of tensors, without a copy."""


class TensorSpec(msgspec.Struct, frozen=True):
    """How to read a frame: a torch dtype's name and a shape."""

    dtype: str
    shape: tuple[int, ...]


class Hello(msgspec.Struct, tag=True, frozen=True):
    """A rank's attention backend is up."""

    rank: int
    kv_tokens: int
    index_bytes: int


class Piece(msgspec.Struct, frozen=True):
    """Positions `offset` … `offset + length - 1` of a job's slots become one segment.

    Attributes:
        offset: first position, relative to the job's first.
        length: positions.
        unit: first of the arenas' units that are reserved for the result.
        warm_unit: where the old clusters of the same positions lie, to start from; None to start afresh.
    """

    offset: int
    length: int
    unit: int
    warm_unit: int | None = None


class RefreshJob(msgspec.Struct, tag=True, frozen=True):
    """Cluster the keys in these slots.

    An actor on the same host reads keys and writes results in `pools`. For one elsewhere they are sent, in
    frames: keys [L, H, n, d], then the old centroids [L * H, K, d] of each warm piece.

    Attributes:
        job_id: counts a rank's jobs.
        rank: who asks.
        request_id: for whom; the engine's id.
        pieces: what becomes a segment.
        cluster_size: average members of a cluster.
        seed: of the initial centroids.
        tail: positions of the request that wait outside its index: its age in the queue.
        slots: slot ids of all positions, int32.
        pools: None where they can't be shared.
        tensors: of the frames; empty where keys are not sent.
    """

    job_id: int
    rank: int
    request_id: str
    pieces: tuple[Piece, ...]
    cluster_size: int
    seed: int
    tail: int
    slots: bytes
    pools: SharedPools | None = None
    tensors: tuple[TensorSpec, ...] = ()


class RefreshReply(msgspec.Struct, tag=True, frozen=True):
    """Answer to a RefreshJob.

    Attributes:
        job_id: of the job.
        error: why there is no result, as "timeout", "actor_died", "busy"; empty with one.
        held: the actor may still write into the units that are reserved for the job. They must not be
            used before another reply says that it does not.
        keys_wanted: the actor can't map the pools, for this reason: the job is to be sent with its keys.
        tensors: of the frames of a result that is not in place: of each piece centroids, spread, members,
            starts and sizes, [L * H, …].
    """

    job_id: int
    error: str = ""
    held: bool = False
    keys_wanted: str = ""
    tensors: tuple[TensorSpec, ...] = ()


class RequestReport(msgspec.Struct, tag=True, frozen=True):
    """What the attention did for a request that has left its slot; see `tactic.v1.AttentionStats`."""

    rank: int
    request_id: str
    decode_steps: int
    dense_steps: int
    context_length: int
    read_share_per_layer: list[float]
    attention_share_mean: float | None
    attention_share_p10: float | None
    index_versions: list[int]
    refreshes: int
    refreshes_dropped: int
    tokens_index_reused: int
    tokens_clustered: int


class Drift(msgspec.Struct, frozen=True):
    """Attention share that a sample of refreshes found and left, each a sum over the samples."""

    samples: int = 0
    before: float = 0.0
    after: float = 0.0


class Gauges(msgspec.Struct, tag=True, frozen=True):
    """State of a rank's index; see `tactic.v1.WorkerStats`."""

    rank: int
    kv_tokens_used: int
    index_bytes_used: int
    segments: int
    segments_evicted: int
    segments_stale: int
    allocation_failures: int
    tokens_clustered: int
    tokens_index_reused: int
    refreshes_requested: int
    refreshes_published: int
    refreshes_in_place: int
    refreshes_dropped: dict[str, int]
    drift: Drift


ToWorker = Hello | RefreshJob | RequestReport | Gauges

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_to_scheduler = msgspec.msgpack.Decoder(RefreshReply)


def encode(message: ToWorker | RefreshReply) -> bytes:
    """The first frame of a message."""
    return _encoder.encode(message)


def decode_to_worker(frame: bytes) -> ToWorker:
    """Reads a frame from a scheduler process. Raises msgspec.DecodeError."""
    return _to_worker.decode(frame)


def decode_to_scheduler(frame: bytes) -> RefreshReply:
    """Reads a frame from the decode worker. Raises msgspec.DecodeError."""
    return _to_scheduler.decode(frame)


def pack(tensors: Sequence[torch.Tensor]) -> tuple[tuple[TensorSpec, ...], list[memoryview]]:
    """Specs and frames of tensors, which are copied to the host where they are not there."""
    host = [tensor.detach().cpu().contiguous() for tensor in tensors]
    specs = tuple(TensorSpec(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for t in host)
    return specs, [t.reshape(-1).view(torch.uint8).numpy().data for t in host]


def unpack(specs: Sequence[TensorSpec], frames: Sequence[bytes | memoryview]) -> list[torch.Tensor]:
    """Reads tensors, each with memory of its own. Raises ValueError where frames and specs do not fit."""
    if len(specs) != len(frames):
        raise ValueError(f"{len(frames)} frames for {len(specs)} tensors")
    tensors = []
    for spec, frame in zip(specs, frames, strict=True):
        dtype = getattr(torch, spec.dtype, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown dtype {spec.dtype!r}")
        size = memoryview(frame).nbytes
        if min(spec.shape, default=1) < 1 or size != math.prod(spec.shape) * dtype.itemsize:
            raise ValueError(f"a frame of {size} bytes does not hold {dtype} {spec.shape}")
        # bytearray: torch wants writable memory.
        tensors.append(torch.frombuffer(bytearray(frame), dtype=dtype).reshape(spec.shape))
    return tensors
