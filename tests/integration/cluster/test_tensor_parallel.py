"""Two ranks in one decode worker, each with an index over its own KV heads: the same answers as one rank."""

import asyncio
import statistics
from collections.abc import AsyncIterator
from typing import Any

import pytest
from turns import DENSE, EVERYTHING, complete, greedy, prompt, until, workers

from tactic.service.client import Answer, TacticClient, TacticOptions, WorkerKind

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

RANKS, STEPS, SWAPS = 2, 160, 3
# Fewer steps than from one refresh to the next: when it is swapped in is a matter of timing.
SHORT = 30
LENGTHS = (1500, 2600, 5000)


@pytest.fixture(scope="module")
async def ranks(start_stack: Any) -> AsyncIterator[TacticClient]:
    """A deployment like the shared one, but with two ranks."""
    with start_stack({"engine.tensor_parallel": RANKS}) as deployment:
        async with TacticClient(deployment.address) as client:
            yield client


async def ask(client: TacticClient, n: int, options: TacticOptions) -> Answer:
    """Completes a prompt of n tokens by `STEPS` tokens."""
    return await complete(client, prompt(n, seed=21), options, greedy(STEPS, logprobs=2))


@pytest.fixture(scope="module")
async def everything(ranks: TacticClient) -> list[Answer]:
    """What two ranks answer at a threshold of 1, with refreshes."""
    # One at a time, so that no rank finds the clustering worker's queue full.
    return [await ask(ranks, n, EVERYTHING) for n in LENGTHS]


def agree(one: Answer, other: Answer, tolerance: float) -> bool:
    """The same tokens, up to where the two likeliest ones are `tolerance` nats apart or less."""
    for mine, theirs in zip(one.logprobs, other.logprobs, strict=True):
        if mine.token_id != theirs.token_id:
            first, second = (top.logprob for top in mine.top)
            return bool(first - second <= tolerance)
    return True


async def test_everything_equals_dense_on_one_rank(stack: Any, everything: list[Answer]) -> None:
    expected = await asyncio.gather(*(ask(stack.client, n, DENSE) for n in LENGTHS))
    for answer, dense in zip(everything, expected, strict=True):
        assert agree(dense, answer, 1e-3)
        stats = answer.attention
        assert stats.dense_steps == 0
        assert list(stats.read_share_per_layer) == pytest.approx([1.0] * 4)
        assert stats.refreshes >= SWAPS


async def test_every_rank_published_its_own_refreshes(ranks: TacticClient, everything: list[Answer]) -> None:
    # Publications are counted on one rank, jobs and refusals on all.
    least = SWAPS * len(everything)

    async def on_the_other_rank() -> int:
        one = (await until(ranks, lambda now: now["decode-0"].stats.refreshes_published >= least))["decode-0"]
        clustering = await workers(ranks, WorkerKind.WORKER_KIND_CLUSTERING)
        assert all(worker.stats.jobs_failed == 0 for worker in clustering.values())
        done = sum(worker.stats.jobs_done for worker in clustering.values())
        return done - one.stats.refreshes_published - one.stats.refreshes_dropped

    async with asyncio.timeout(60):
        while await on_the_other_rank() < least:
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("threshold", [0.9, 0.7])
async def test_sparse_equals_sparse_on_one_rank(stack: Any, ranks: TacticClient, threshold: float) -> None:
    options, sampling = TacticOptions(threshold=threshold, measure=True), greedy(SHORT, logprobs=2)
    for n in LENGTHS:
        expected = await complete(stack.client, prompt(n, seed=22), options, sampling)
        answer = await complete(ranks, prompt(n, seed=22), options, sampling)
        assert agree(expected, answer, 0.05)
        one, two = expected.attention, answer.attention
        assert statistics.mean(two.read_share_per_layer) < 1
        assert list(two.read_share_per_layer) == pytest.approx(list(one.read_share_per_layer), abs=0.02)
        assert two.attention_share_mean == pytest.approx(one.attention_share_mean, abs=0.01)
        assert two.tokens_clustered == one.tokens_clustered
