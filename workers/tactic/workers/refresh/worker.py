"""The clustering actor: k-means for refreshes, in a process of its own."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import ray
import torch

from tactic.workers.refresh import messages
from tactic.workers.refresh.compute import cluster_pieces, flatten
from tactic.workers.refresh.messages import RefreshJob, TensorSpec

Frames = list[np.ndarray[Any, np.dtype[np.uint8]]]


class ClusteringWorker:
    """Re-clusters keys on request; holds no state, so any job may go to any actor.

    Args:
        threads: CPU threads for one job.
        device: "cpu" or "cuda".
    """

    def __init__(self, threads: int = 1, device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        self._done = 0
        self._failed = 0

    def cluster(self, job: RefreshJob, frames: Frames) -> tuple[tuple[TensorSpec, ...], Frames]:
        """Does one job: specs and frames of its RefreshReply. Raises ValueError where `frames` do not fit."""
        try:
            tensors = [t.to(self._device) for t in messages.unpack(job.tensors, [f.data for f in frames])]
            clusters = cluster_pieces(tensors, job.pieces, job.cluster_size, job.seed)
            specs, views = messages.pack(flatten(clusters))
        except BaseException:
            self._failed += 1
            raise
        self._done += 1
        return specs, [np.frombuffer(view, np.uint8) for view in views]

    def snapshot(self) -> dict[str, int]:
        """Process id, and counts of jobs since the process started."""
        return {"pid": os.getpid(), "jobs_done": self._done, "jobs_failed": self._failed}


def create_clustering_worker(name: str, *, threads: int, gpus: float) -> Any:
    """Starts a ClusteringWorker as a Ray actor that Ray restarts when it dies. Returns its handle."""
    actor = ray.remote(ClusteringWorker)
    return actor.options(
        name=name, num_cpus=0, num_gpus=gpus, max_restarts=-1, max_task_retries=0, max_concurrency=1
    ).remote(threads, "cuda" if gpus else "cpu")
