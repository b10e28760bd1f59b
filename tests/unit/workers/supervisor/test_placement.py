"""What a deployment asks of Ray."""

import pytest

from tactic.worker.v1.supervisor_pb2 import DeploymentSpec, EngineSpec, RefreshSpec
from tactic.workers.sglang.checks import UnsupportedError
from tactic.workers.supervisor.placement import home, needed_cpus, plan


def deployment(decode: int, clustering: int, placement: str = "", **engine: int) -> DeploymentSpec:
    return DeploymentSpec(
        engine=EngineSpec(**engine),
        refresh=RefreshSpec(placement=placement),
        decode_workers=decode,
        clustering_workers=clustering,
    )


def test_a_decode_worker_has_a_gpu_for_each_rank() -> None:
    (group,) = plan(deployment(1, 0, tensor_parallel=4), "cuda")
    assert group.bundles == [{"CPU": 4, "GPU": 4}]


def test_without_gpus_the_threads_of_all_ranks_count() -> None:
    (group,) = plan(deployment(1, 1, tensor_parallel=2, threads=3), "cpu")
    assert group.bundles == [{"CPU": 6}, {"CPU": 1}]


def test_clustering_workers_are_dealt_out_in_turn() -> None:
    spec = deployment(2, 5, "dedicated")
    first, second = plan(spec, "cuda")
    assert first.bundles == [{"CPU": 1, "GPU": 1}] * 4
    assert second.bundles == [{"CPU": 1, "GPU": 1}] * 3
    assert [home(worker, spec) for worker in range(5)] == [0, 1, 0, 1, 0]
    assert needed_cpus([first, second]) == 7


def test_colocated_workers_need_no_gpu_beside_their_decode_workers() -> None:
    (group,) = plan(deployment(1, 2, "colocated", tensor_parallel=2), "cuda")
    assert group.bundles == [{"CPU": 4, "GPU": 2}]


@pytest.mark.parametrize("placement", ["dedicated", "colocated"])
def test_gpus_that_are_not_there(placement: str) -> None:
    with pytest.raises(UnsupportedError, match=f"refresh.placement: '{placement}' needs GPUs"):
        plan(deployment(1, 1, placement), "cpu")
