"""The clustering actor: k-means for refreshes, in a process of its own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
import torch

from tactic.workers.config import RefreshConfig
from tactic.workers.refresh import messages
from tactic.workers.refresh.compute import cluster_pieces, flatten
from tactic.workers.refresh.messages import RefreshJob, TensorSpec

logger = logging.getLogger(__name__)

CONTROL = "control"
"""Concurrency group in which an actor answers `snapshot` while it is at a job."""

Frames = list[np.ndarray[Any, np.dtype[np.uint8]]]
Result = tuple[tuple[TensorSpec, ...], Frames]


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
        self._began: float | None = None

    def cluster(self, jobs: Sequence[RefreshJob], frames: Sequence[Frames]) -> Iterator[Result | None]:
        """Does jobs, one after the other.

        Args:
            jobs: what to do.
            frames: of each job.

        Yields:
            None when it begins; then for each job specs and frames of its RefreshReply, or None where it
            failed.
        """
        yield None
        for job, own in zip(jobs, frames, strict=True):
            self._began = time.monotonic()
            try:
                result = self.cluster_one(job, own)
            except Exception:  # Whatever a job fails of, the others of the call are done.
                logger.exception("refresh job %d of rank %d failed", job.job_id, job.rank)
                self._failed += 1
                result = None
            else:
                self._done += 1
            finally:
                self._began = None
            yield result

    def cluster_one(self, job: RefreshJob, frames: Frames) -> Result:
        """Specs and frames of a job's RefreshReply. Raises ValueError where `frames` do not fit."""
        tensors = [t.to(self._device) for t in messages.unpack(job.tensors, [f.data for f in frames])]
        clusters = cluster_pieces(tensors, job.pieces, job.cluster_size, job.seed)
        specs, views = messages.pack(flatten(clusters))
        return specs, [np.frombuffer(view, np.uint8) for view in views]

    def snapshot(self) -> dict[str, Any]:
        """Node, process id, counts of jobs since the process started, and time spent at the present one."""
        began = self._began
        return {
            "node": os.uname().nodename,
            "pid": os.getpid(),
            "jobs_done": self._done,
            "jobs_failed": self._failed,
            "busy_ms": 0 if began is None else int(1000 * (time.monotonic() - began)),
        }


def create_clustering_worker(
    name: str, config: RefreshConfig, options: dict[str, Any], *, threads: int = 1
) -> Any:
    """Starts a ClusteringWorker as a Ray actor that Ray restarts when it dies. Returns its handle.

    Args:
        name: of the actor.
        config: placement, and how much of a GPU it may take.
        options: of Ray: resources, and where to run.
        threads: CPU threads for one job.
    """
    actor = ray.remote(concurrency_groups={CONTROL: 1})(ClusteringWorker)
    return actor.options(name=name, max_restarts=-1, max_task_retries=0, max_concurrency=1, **options).remote(
        threads, "cpu" if config.placement == "cpu" else "cuda"
    )
