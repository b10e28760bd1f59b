"""The clustering actor: a ClusteringWorker under Ray."""

from __future__ import annotations

import os
from typing import Any

import ray

from tactic.workers.config import RefreshConfig
from tactic.workers.refresh.clustering import ClusteringWorker

CONTROL = "control"
"""Concurrency group in which an actor answers `snapshot` while it is at a job."""

ALL_GPUS_VISIBLE = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
"""Ray's runtime environment of an actor that maps the memory of GPUs which are not its own."""


class ClusteringActor(ClusteringWorker):
    """A ClusteringWorker on the GPU that Ray has assigned, if any.

    Args:
        config: placement, and how much of a GPU it may take.
        threads: CPU threads for one job.
    """

    def __init__(self, config: RefreshConfig, threads: int) -> None:
        gpu = assigned_gpu() if config.placement == "dedicated" else None
        super().__init__(config, threads=threads, gpu=gpu)


def assigned_gpu() -> int:
    """Index, among the GPUs that this process sees, of the one that Ray has given it."""
    (assigned,) = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",").index(assigned) if visible else int(assigned)


def create_clustering_worker(
    name: str, config: RefreshConfig, options: dict[str, Any], *, threads: int = 1
) -> Any:
    """Starts a ClusteringActor, which Ray restarts when it dies. Returns its handle.

    Args:
        name: of the actor.
        config: placement, and how much of a GPU it may take.
        options: of Ray: resources, and where to run.
        threads: CPU threads for one job.
    """
    actor = ray.remote(concurrency_groups={CONTROL: 1})(ClusteringActor)
    if config.placement != "cpu":
        options = options | {"runtime_env": ALL_GPUS_VISIBLE}
    return actor.options(name=name, max_restarts=-1, max_task_retries=0, max_concurrency=1, **options).remote(
        config, threads
    )
