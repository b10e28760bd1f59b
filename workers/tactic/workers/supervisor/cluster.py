"""The Ray cluster that a deployment runs on: one that is there, or one started on this machine."""

from __future__ import annotations

import logging
import os

import ray

from tactic.worker.v1.supervisor_pb2 import DeploymentSpec
from tactic.workers.sglang.device import engine_device
from tactic.workers.supervisor.placement import needed_cpus, plan

LOCAL_WAIT_S = 10.0
CLUSTER_WAIT_S = 60.0
"""Longest that a cluster may take to have room; nodes may still be joining it."""


def join(spec: DeploymentSpec) -> str:
    """Joins the Ray cluster of the spec, or starts one here.

    Returns:
        Where engines run, "cuda" or "cpu": what the spec says, else whether the cluster has GPUs.

    Raises:
        UnsupportedError: the placement needs GPUs, and the engines run without.
        ConnectionError: there is no cluster at the address of the spec.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if spec.ray_address:
        # A cluster that runs already does not have our environment.
        own = {name: value for name, value in os.environ.items() if name.startswith("TACTIC_")}
        ray.init(address=spec.ray_address, runtime_env={"env_vars": own}, logging_level=logging.WARNING)
        if spec.engine.device in ("", "auto"):
            return "cuda" if ray.cluster_resources().get("GPU") else "cpu"
        return spec.engine.device
    device = engine_device()
    # Its default, 15, leaves an engine what the rest of the machine does not want.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nobody else uses this one. Where workers outnumber the cores they share them; that is no reason to fail.
    cpus = needed_cpus(plan(spec, device))
    # "local": without an address, Ray joins whatever cluster it finds on this machine.
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, logging_level=logging.WARNING)
    return device


def wait_s(spec: DeploymentSpec) -> float:
    """How long to wait for room."""
    return CLUSTER_WAIT_S if spec.ray_address else LOCAL_WAIT_S
