"""Several Ray nodes on one machine. GPUs are only counted, so whoever runs on them must not touch CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
from ray.cluster_utils import Cluster

# A killed node is found out within seconds; a busy machine is not taken for a dead one.
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}
# Ray gives a node 30 seconds to start, which a machine with two busy cores may exceed.
ATTEMPTS = 3


def _raylets() -> set[psutil.Process]:
    return {process for process in psutil.Process().children() if process.name() == "raylet"}


def add_node(cluster: Cluster, **node: int) -> Any:
    """Adds a node to the cluster; one that did not start in time is killed, and started anew."""
    for attempt in range(1, ATTEMPTS + 1):
        before = _raylets()
        try:
            return cluster.add_node(**node)
        except Exception as error:
            if "timed out during startup" not in str(error) or attempt == ATTEMPTS:
                raise
            print(f"a Ray node did not start in time, attempt {attempt} of {ATTEMPTS}")
            # Late, it would join as a node that nobody asked for.
            for raylet in _raylets() - before:
                raylet.kill()
    raise AssertionError("unreachable")


@contextmanager
def ray_cluster(*nodes: dict[str, int]) -> Iterator[Cluster]:
    """A head without resources, and a node for each of `nodes`: {"num_cpus": 2, "num_gpus": 1}."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for node in nodes:
            add_node(cluster, **node)
        yield cluster
    finally:
        cluster.shutdown()
