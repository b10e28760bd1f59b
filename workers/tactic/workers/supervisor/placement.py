"""Where the workers of a deployment run, decided by Ray placement groups.

One group holds a decode worker and the clustering workers whose home it is. Ray keeps a group on one node
where there is room, because there the K pool can be mapped instead of being sent; what finds no room there
runs elsewhere. Nobody picks devices: Ray assigns them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tactic.worker.v1.supervisor_pb2 import DeploymentSpec
from tactic.workers.sglang.checks import UnsupportedError

logger = logging.getLogger(__name__)

POLL_S = 0.1
REPORT_S = 10.0
"""How often it is said again what is being waited for."""

Resources = dict[str, float]


@dataclass(frozen=True)
class GroupPlan:
    """What one decode worker and its clustering workers need.

    Attributes:
        decode: resources of the decode worker, on one node.
        clustering: resources of each clustering worker whose home it is.
        shares_bundle: these run in the decode worker's own bundle, on its GPUs.
    """

    decode: Resources
    clustering: tuple[Resources, ...]
    shares_bundle: bool

    @property
    def bundles(self) -> list[Resources]:
        """What Ray reserves, the decode worker's first."""
        if self.shares_bundle:
            cpus = sum(own["CPU"] for own in (self.decode, *self.clustering))
            return [self.decode | {"CPU": cpus}]
        return [self.decode, *self.clustering]


def plan(spec: DeploymentSpec, device: str) -> list[GroupPlan]:
    """One group for each decode worker; clustering workers are dealt out to them in turn.

    Args:
        spec: the deployment.
        device: "cuda" or "cpu", where the engines run.

    Raises:
        UnsupportedError: the placement needs GPUs, and the engines run without.
    """
    placement = spec.refresh.placement or "cpu"
    if placement != "cpu" and device == "cpu":
        raise UnsupportedError(f"refresh.placement: '{placement}' needs GPUs; use 'cpu'")
    ranks = max(1, spec.engine.tensor_parallel)
    if device == "cuda":
        decode: Resources = {"CPU": ranks, "GPU": ranks}
    else:
        decode = {"CPU": ranks * max(1, spec.engine.threads)}
    clustering: Resources = {"CPU": 1, "GPU": 1} if placement == "dedicated" else {"CPU": 1}
    homes = [home(worker, spec) for worker in range(spec.clustering_workers)]
    return [
        GroupPlan(decode, (clustering,) * homes.count(group), shares_bundle=placement == "colocated")
        for group in range(spec.decode_workers)
    ]


def home(clustering_worker: int, spec: DeploymentSpec) -> int:
    """The decode worker beside which a clustering worker runs."""
    return clustering_worker % spec.decode_workers


def needed_cpus(plans: Sequence[GroupPlan]) -> int:
    """CPUs that a deployment counts on."""
    return int(sum(bundle["CPU"] for group in plans for bundle in group.bundles))


class Placement:
    """The placement groups of a deployment, in the Ray cluster that this process has joined.

    A bundle whose node dies is moved by Ray to another node as soon as one has room; the actors' options stay
    good.

    Args:
        spec: the deployment.
        device: "cuda" or "cpu", where the engines run.

    Raises:
        UnsupportedError: the placement needs GPUs, and the engines run without.
    """

    def __init__(self, spec: DeploymentSpec, device: str) -> None:
        self._spec = spec
        self._plans = plan(spec, device)
        self._groups: list[PlacementGroup] = [
            placement_group(group.bundles, strategy="PACK") for group in self._plans
        ]

    def decode(self, worker: int) -> dict[str, Any]:
        """Options of a decode worker's actor."""
        return self._options(worker, 0, self._plans[worker].decode)

    def clustering(self, worker: int) -> dict[str, Any]:
        """Options of a clustering worker's actor."""
        group, number = home(worker, self._spec), worker // self._spec.decode_workers
        own = self._plans[group]
        return self._options(group, 0 if own.shares_bundle else 1 + number, own.clustering[number])

    def servants(self, decode_worker: int) -> list[int]:
        """Clustering workers that a decode worker may ask, its own first."""
        workers = range(self._spec.clustering_workers)
        own = [worker for worker in workers if home(worker, self._spec) == decode_worker]
        if self._plans[decode_worker].shares_bundle:
            return own
        return own + [worker for worker in workers if worker not in own]

    async def reserve(self, timeout_s: float) -> None:
        """Waits until there is room for everything.

        Raises:
            UnsupportedError: there was none within the time; the message says what is needed and what is
                there.
        """
        try:
            async with asyncio.timeout(timeout_s):
                for worker in range(len(self._groups)):
                    await self.room(worker)
        except TimeoutError:
            missing = [worker for worker in range(len(self._groups)) if not self._stands(worker)]
            raise UnsupportedError(self._shortage(missing)) from None

    async def room(self, decode_worker: int) -> None:
        """Waits until a decode worker's group has its place, and says from time to time what is missing."""
        waited = 0.0
        while not self._stands(decode_worker):
            await asyncio.sleep(POLL_S)
            waited += POLL_S
            if waited >= REPORT_S:
                waited = 0.0
                logger.warning("waiting: %s", self._shortage([decode_worker]))

    def remove(self) -> None:
        """Gives everything back; Ray ends the actors that are still there."""
        for group in self._groups:
            remove_placement_group(group)

    def _stands(self, worker: int) -> bool:
        return bool(placement_group_table(self._groups[worker])["state"] == "CREATED")

    def _options(self, group: int, bundle: int, resources: Resources) -> dict[str, Any]:
        return {
            "num_cpus": resources["CPU"],
            "num_gpus": resources.get("GPU", 0),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._groups[group],
                placement_group_bundle_index=bundle,
                placement_group_capture_child_tasks=False,
            ),
        }

    def _shortage(self, missing: Sequence[int]) -> str:
        """Why workers have no place, in settings' names."""
        group = self._plans[missing[0]]
        names = ", ".join(f"decode-{worker}" for worker in missing)
        lines = [
            f"no room for {names}: a decode worker needs {_describe(group.bundles[0])} on one node "
            f"(engine.tensor_parallel = {max(1, self._spec.engine.tensor_parallel)})"
        ]
        for resources in group.bundles[1:2]:
            lines.append(
                f", each of its clustering workers {_describe(resources)} "
                f"(refresh.placement = {self._spec.refresh.placement or 'cpu'})"
            )
        nodes = [
            f"{node['NodeManagerHostname']} has {_describe(node['Resources'])}"
            for node in ray.nodes()
            if node["Alive"]
        ]
        lines.append(f". Nodes: {'; '.join(nodes)}; free in all: {_describe(ray.available_resources())}")
        lines.append(
            f". Add nodes, or lower workers.decode = {self._spec.decode_workers}, "
            f"workers.clustering = {self._spec.clustering_workers} or engine.tensor_parallel"
        )
        return "".join(lines)


def _describe(resources: Resources) -> str:
    """GPUs and CPUs, in words."""
    parts = [
        f"{resources.get(kind, 0):g} {kind}{'' if resources.get(kind, 0) == 1 else 's'}"
        for kind in ("GPU", "CPU")
        if kind == "CPU" or resources.get(kind) is not None
    ]
    return " and ".join(parts)
