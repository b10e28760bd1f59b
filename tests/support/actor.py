"""The clustering actor's work without Ray, done well or badly, on keys that were sent or in place."""

import random
from collections.abc import Callable
from typing import Any

import torch

from tactic.workers.config import RefreshConfig
from tactic.workers.refresh import messages
from tactic.workers.refresh.clustering import ClusteringWorker
from tactic.workers.refresh.messages import RefreshJob, RefreshReply
from tactic.workers.refresh.pools import Mappings

Spoil = Callable[[list[torch.Tensor]], None]
Answer = tuple[RefreshReply, list[Any]]


class Actor:
    """Answers jobs as ClusteringWorker does."""

    def __init__(self) -> None:
        self.worker = ClusteringWorker(RefreshConfig())
        self._mappings = Mappings(torch.device("cpu"))

    def answer(self, job: RefreshJob, frames: list[Any], spoil: Spoil | None = None) -> Answer:
        """Does a job; then `spoil` may change the tensors of its result, wherever they are."""
        arrays = [torch.frombuffer(bytearray(frame), dtype=torch.uint8).numpy() for frame in frames]
        reply, result = self.worker.cluster_one(job, arrays)
        if spoil is None:
            return reply, result
        if not reply.tensors:
            spoil(self.written(job))
            return reply, result
        tensors = messages.unpack(reply.tensors, [array.data for array in result])
        spoil(tensors)
        specs, views = messages.pack(tensors)
        return RefreshReply(job.job_id, tensors=specs), [bytes(view) for view in views]

    def written(self, job: RefreshJob) -> list[torch.Tensor]:
        """The memory of a job's result in the last layer; factors stand for centroids, else as it is sent."""
        assert job.pools is not None
        arena = self._mappings.open(job.pools).arenas[-1]
        return [each for piece in job.pieces for each in arena.views(piece.unit, piece.length)[1:]]

    def scribble(self, job: RefreshJob, draw: random.Random) -> None:
        """Writes what looks like clusters, but of no keys, over a part of the job's memory: no result yet."""
        for tensor in self.written(job):
            if draw.random() < 0.7:
                tensor.fill_(draw.random() if tensor.is_floating_point() else draw.randrange(4))
