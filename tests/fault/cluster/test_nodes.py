"""A decode worker on each of two Ray nodes: one node dies under load, and nothing acknowledged is lost."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest
from cluster_nodes import add_node, ray_cluster
from ray.cluster_utils import Cluster
from turns import EVERYTHING, chat, complete, greedy, prompt, text, until, worker_of, workers

from tactic.service.client import Answer, TacticClient, Worker, WorkerKind, WorkerState

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

# A decode worker and its clustering worker fill a node.
NODE = {"num_cpus": 2}
STEPS = 160
CLUSTERING = WorkerKind.WORKER_KIND_CLUSTERING
READY = WorkerState.WORKER_STATE_READY


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ray_cluster(NODE, NODE) as nodes:
        yield nodes


@pytest.fixture(scope="module")
async def client(start_stack: Any, cluster: Cluster) -> AsyncIterator[TacticClient]:
    flags = {"workers.ray_address": cluster.address, "workers.decode": 2, "workers.clustering": 2}
    with start_stack(flags) as deployment:
        async with TacticClient(deployment.address) as client:
            yield client


def node_of(cluster: Cluster, worker: Worker) -> Any:
    """The Ray node that runs a worker."""
    ancestors = {process.pid for process in psutil.Process(worker.pid).parents()}
    (node,) = (n for n in cluster.worker_nodes if n.all_processes["raylet"][0].process.pid in ancestors)
    return node


async def test_a_node_dies_under_load_and_another_takes_its_place(
    client: TacticClient, cluster: Cluster
) -> None:
    await a_node_dies_under_load(client, cluster)
    await its_workers_come_back_on_a_new_node(client, cluster)


async def a_node_dies_under_load(client: TacticClient, cluster: Cluster) -> None:
    decode, clustering = (
        await workers(client, WorkerKind.WORKER_KIND_DECODE),
        await workers(client, CLUSTERING),
    )
    node = node_of(cluster, decode["decode-0"])
    assert node_of(cluster, clustering["clustering-0"]) == node
    assert node_of(cluster, decode["decode-1"]) == node_of(cluster, clustering["clustering-1"]) != node

    sessions = []
    for seed in range(4):
        sessions.append((await client.create_session()).session_id)
        await client.append_context(sessions[-1], text(1500, seed=seed), prefill=False)
    first = await asyncio.gather(*(chat(client, s, "What is this?", EVERYTHING, 8) for s in sessions))
    assert {worker_of(answer) for answer in first} == {"decode-0", "decode-1"}
    twins = [(await client.fork_session(session)).session_id for session in sessions]
    expected = await asyncio.gather(*(chat(client, s, "And that?", EVERYTHING, STEPS) for s in twins))

    begun = [asyncio.Event() for _ in sessions]

    async def turn(session: str, begins: asyncio.Event) -> Answer:
        answer = Answer()
        events = client.chat("And that?", session_id=session, tactic=EVERYTHING, sampling=greedy(STEPS))
        async for event in events:
            answer.add(event)
            if len(answer.token_ids) >= 10:
                begins.set()
        return answer

    turns = [asyncio.create_task(turn(*each)) for each in zip(sessions, begun, strict=True)]
    await asyncio.gather(*(event.wait() for event in begun))
    await asyncio.to_thread(cluster.remove_node, node, allow_graceful=False)
    for answer, twin in zip(await asyncio.gather(*turns), expected, strict=True):
        assert answer.token_ids == twin.token_ids

    # There is no room for what was on the node, so the other one serves all.
    await until(client, lambda now: now["decode-0"].state != READY)
    for session, twin in zip(sessions, twins, strict=True):
        more = text(400, seed=9)
        await client.append_context(session, more, prefill=False)
        await client.append_context(twin, more, prefill=False)
        answer = await chat(client, session, "Once more?", EVERYTHING, 16)
        assert worker_of(answer) == "decode-1"
        assert answer.token_ids == (await chat(client, twin, "Once more?", EVERYTHING, 16)).token_ids


async def its_workers_come_back_on_a_new_node(client: TacticClient, cluster: Cluster) -> None:
    node = add_node(cluster, **NODE)
    for name, kind in (("decode-0", WorkerKind.WORKER_KIND_DECODE), ("clustering-0", CLUSTERING)):
        back = (await until(client, lambda now, n=name: now[n].state == READY, kind, timeout_s=400))[name]
        assert back.restarts >= 1
        assert node_of(cluster, back) == node
    answers = await asyncio.gather(
        *(complete(client, prompt(1100, seed=n), EVERYTHING, greedy(64)) for n in range(6))
    )
    assert {worker_of(answer) for answer in answers} == {"decode-0", "decode-1"}
    # Refreshes go on, jobs that were sent to the lost clustering worker are done first.
    async with asyncio.timeout(180):
        refreshes = 0
        while not refreshes:
            answer = await complete(client, prompt(1500), EVERYTHING, greedy(STEPS))
            refreshes = answer.attention.refreshes
