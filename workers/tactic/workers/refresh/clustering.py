"""What a clustering actor does: k-means for refreshes, in a process of its own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tactic.workers.config import RefreshConfig
from tactic.workers.refresh import messages, mps
from tactic.workers.refresh.compute import cluster_in_place, cluster_pieces, flatten, on
from tactic.workers.refresh.messages import Frames, RefreshJob, RefreshReply
from tactic.workers.refresh.pace import Pace
from tactic.workers.refresh.pools import MappedPools, Mappings
from tactic.workers.sharing.handles import NotSharedError
from tactic.workers.sharing.host import host_identity

logger = logging.getLogger(__name__)

Result = tuple[RefreshReply, Frames]
Begun = tuple[str, int]
"""`host_identity` and process id of an actor that is at a call."""


class ClusteringWorker:
    """Re-clusters keys on request; any job may go to any actor.

    Where it can map the pools of the rank that asks, it reads keys and writes clusters there; else it wants
    keys to be sent, and sends clusters.

    Args:
        config: placement, and how much of a GPU it may take.
        threads: CPU threads for one job.
        gpu: index of a GPU of its own; None computes on the CPU, or colocated on the GPU of the pools.
    """

    def __init__(self, config: RefreshConfig, *, threads: int = 1, gpu: int | None = None) -> None:
        torch.set_num_threads(threads)
        mps.join(config)
        self._device = None if config.placement == "colocated" else _device(gpu)
        self._pace = Pace(config.actual_duty)
        self._mappings = Mappings(self._device)
        self._done = 0
        self._failed = 0
        self._began: float | None = None

    def cluster(
        self, jobs: Sequence[RefreshJob], frames: Sequence[Frames]
    ) -> Iterator[Begun | Result | None]:
        """Does jobs, one after the other.

        Args:
            jobs: what to do.
            frames: of each job.

        Yields:
            Who it is when it begins; then for each job the answer and its frames, or None where it failed.
            From then on it writes nothing more for that job.
        """
        yield host_identity(), os.getpid()
        for job, own in zip(jobs, frames, strict=True):
            self._began = time.monotonic()
            try:
                result = self.cluster_one(job, own)
            except Exception:  # Whatever a job fails of, the others of the call are done.
                logger.exception("refresh job %d of rank %d failed", job.job_id, job.rank)
                self._failed += 1
                result = None
                self._settle()
            finally:
                self._began = None
            yield result

    def cluster_one(self, job: RefreshJob, frames: Frames) -> Result:
        """A job's answer and its frames. Raises ValueError where `frames` do not fit."""
        if job.pools is not None:
            try:
                pools = self._mappings.open(job.pools)
            except NotSharedError as error:
                if not job.tensors:
                    return RefreshReply(job.job_id, keys_wanted=str(error)), []
            else:
                return self.cluster_mapped(job, pools), []
        return self.cluster_sent(job, frames)

    def cluster_sent(self, job: RefreshJob, frames: Frames) -> Result:
        """Does a job whose keys came with it; its answer, and the clusters."""
        device = self._device or torch.device("cuda", 0)
        self._pace.uses(device)
        with on(device):
            tensors = [t.to(device) for t in messages.unpack(job.tensors, [f.data for f in frames])]
            clusters = cluster_pieces(tensors, job.pieces, job.cluster_size, job.seed)
            specs, views = messages.pack(flatten(clusters))
        self._done += 1
        return RefreshReply(job.job_id, tensors=specs), [np.frombuffer(view, np.uint8) for view in views]

    def cluster_mapped(self, job: RefreshJob, pools: MappedPools) -> RefreshReply:
        """Does a job in the pools of the rank that asks; its answer."""
        device = pools.keys[0].device
        self._pace.uses(device)
        with self._pace as pace, on(device):
            cluster_in_place(job, pools, pace.rest)
        self._done += 1
        return RefreshReply(job.job_id)

    def _settle(self) -> None:
        """Sees a failed job's kernels to their end. A process whose GPU has failed ends: Ray restarts it."""
        try:
            self._pace.wait()
        except RuntimeError:
            logger.critical("the GPU has failed", exc_info=True)
            os._exit(1)

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


def _device(gpu: int | None) -> torch.device:
    return torch.device("cpu") if gpu is None else torch.device("cuda", gpu)
