"""Several Ray nodes on one machine. GPUs are only counted, so whoever runs on them must not touch CUDA."""

from collections.abc import Iterator
from contextlib import contextmanager

from ray.cluster_utils import Cluster

# A killed node is found out within seconds; a busy machine is not taken for a dead one.
HEALTH = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@contextmanager
def ray_cluster(*nodes: dict[str, int]) -> Iterator[Cluster]:
    """A head without resources, and a node for each of `nodes`: {"num_cpus": 2, "num_gpus": 1}."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for node in nodes:
            cluster.add_node(**node)
        yield cluster
    finally:
        cluster.shutdown()
