"""Where Ray puts the actors of a deployment, on nodes whose GPUs are only counted."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import ray
from cluster_nodes import add_node, ray_cluster
from ray.cluster_utils import Cluster

from tactic.worker.v1.supervisor_pb2 import DeploymentSpec, EngineSpec, RefreshSpec
from tactic.workers.sglang.checks import UnsupportedError
from tactic.workers.supervisor import placement as module
from tactic.workers.supervisor.placement import Placement

pytestmark = pytest.mark.timeout(180)

WAIT_S = 60.0


def tenant() -> Any:
    """An actor's class; it tells where it is."""

    class Tenant:  # Inside, so that it is sent by value: Ray's processes can't import this file.
        def place(self) -> tuple[str, frozenset[int]]:
            return ray.get_runtime_context().get_node_id(), frozenset(ray.get_gpu_ids())

    return ray.remote(Tenant)


@dataclass
class House:
    """A deployment's placement, with tenants instead of workers."""

    spec: DeploymentSpec
    placement: Placement
    tenants: list[Any] = field(default_factory=list)

    async def decode(self, worker: int) -> tuple[str, frozenset[int]]:
        """Node and GPUs of a decode worker."""
        return await self._move_in(self.placement.decode(worker))

    async def clustering(self, worker: int) -> tuple[str, frozenset[int]]:
        """Node and GPUs of a clustering worker."""
        return await self._move_in(self.placement.clustering(worker))

    async def _move_in(self, options: dict[str, Any]) -> tuple[str, frozenset[int]]:
        self.tenants.append(tenant().options(**options).remote())
        place: tuple[str, frozenset[int]] = await self.tenants[-1].place.remote()
        return place


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with two GPUs, and one with one."""
    two, one = {"num_cpus": 4, "num_gpus": 2}, {"num_cpus": 2, "num_gpus": 1}
    with ray_cluster(two, two, one) as nodes:
        ray.init(address=nodes.address, logging_level="ERROR", log_to_driver=False)
        yield nodes
        ray.shutdown()


@pytest.fixture
def house(cluster: Cluster) -> Iterator[Any]:
    """Makes houses; their tenants are out before the next test."""
    houses = []

    def make(decode: int, clustering: int, placement: str, tensor_parallel: int = 1) -> House:
        spec = DeploymentSpec(
            engine=EngineSpec(tensor_parallel=tensor_parallel),
            refresh=RefreshSpec(placement=placement),
            decode_workers=decode,
            clustering_workers=clustering,
        )
        houses.append(House(spec, Placement(spec, "cuda")))
        return houses[-1]

    yield make
    for made in houses:
        for tenant in made.tenants:
            ray.kill(tenant)
        made.placement.remove()


async def test_a_clustering_worker_is_where_its_decode_worker_is(house: Any) -> None:
    pair = house(2, 2, "dedicated")
    await pair.placement.reserve(WAIT_S)
    for worker in range(2):
        node, gpus = await pair.decode(worker)
        beside, others = await pair.clustering(worker)
        assert node == beside
        assert len(gpus) == len(others) == 1
        assert not gpus & others
    assert [pair.placement.servants(worker) for worker in range(2)] == [[0, 1], [1, 0]]


async def test_a_clustering_worker_without_room_there_runs_elsewhere(house: Any) -> None:
    wide = house(1, 1, "dedicated", tensor_parallel=2)
    await wide.placement.reserve(WAIT_S)
    node, gpus = await wide.decode(0)
    elsewhere, others = await wide.clustering(0)
    assert (len(gpus), len(others)) == (2, 1)
    assert node != elsewhere


async def test_colocated_workers_serve_their_own_decode_worker_only(house: Any) -> None:
    shared = house(2, 3, "colocated", tensor_parallel=2)
    await shared.placement.reserve(WAIT_S)
    homes = [(await shared.decode(worker))[0] for worker in range(2)]
    assert len(set(homes)) == 2
    for worker in range(3):
        # It finds the device by the pool that it maps; none is its own.
        assert await shared.clustering(worker) == (homes[worker % 2], frozenset())
    assert [shared.placement.servants(worker) for worker in range(2)] == [[0, 2], [1]]


async def test_spare_cores_do_for_clustering_on_the_cpu(house: Any) -> None:
    spare = house(1, 6, "cpu", tensor_parallel=2)
    await spare.placement.reserve(WAIT_S)
    node, _ = await spare.decode(0)
    places = [await spare.clustering(worker) for worker in range(6)]
    # Two cores are left beside the decode worker's two ranks.
    assert [place for place, _ in places].count(node) == 2
    assert not any(gpus for _, gpus in places)


@pytest.mark.parametrize(
    ("workers", "tensor_parallel", "missing", "needed"),
    [((1, 0), 4, "decode-0", "4 GPUs and 4 CPUs"), ((3, 0), 2, "decode-2", "2 GPUs and 2 CPUs")],
)
async def test_too_few_gpus(
    house: Any, workers: tuple[int, int], tensor_parallel: int, missing: str, needed: str
) -> None:
    crowd = house(*workers, "cpu", tensor_parallel)
    with pytest.raises(UnsupportedError) as error:
        await crowd.placement.reserve(1)
    text = str(error.value)
    assert text.startswith(f"no room for {missing}: a decode worker needs {needed} on one node")
    assert f"engine.tensor_parallel = {tensor_parallel}" in text
    assert text.count("2 GPUs and 4 CPUs") == 2
    assert f"workers.decode = {workers[0]}" in text


async def test_what_lost_its_node_finds_another(
    house: Any, cluster: Cluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No other node has three GPUs.
    before = add_node(cluster, num_cpus=4, num_gpus=3)
    moving = house(1, 1, "cpu", tensor_parallel=3)
    await moving.placement.reserve(WAIT_S)
    node, _ = await moving.decode(0)
    assert node == before.node_id
    assert (await moving.clustering(0))[0] == node
    cluster.remove_node(before, allow_graceful=False)

    monkeypatch.setattr(module, "REPORT_S", 0.5)
    with caplog.at_level(logging.WARNING, module.__name__):
        waiting = asyncio.create_task(moving.placement.room(0))
        async with asyncio.timeout(WAIT_S):
            while "no room for decode-0: a decode worker needs 3 GPUs" not in caplog.text:
                if waiting.done():  # Ray has not noticed yet.
                    waiting = asyncio.create_task(moving.placement.room(0))
                await asyncio.sleep(0.1)
        after = add_node(cluster, num_cpus=4, num_gpus=3)
        await asyncio.wait_for(waiting, WAIT_S)
    assert (await moving.decode(0))[0] == after.node_id
    cluster.remove_node(after)
