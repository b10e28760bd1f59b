"""Refreshes computed by the clustering actor and published between two steps."""

import asyncio
from typing import Any

import pytest
from turns import EVERYTHING, complete, greedy, prompt, until

from tactic.service.client import Answer, TacticOptions, WorkerKind

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

STEPS, SWAPS = 160, 3


async def test_hot_swaps_change_no_token(stack: Any, without_refresh: Any) -> None:
    async def ask(client: Any, n: int) -> Answer:
        return await complete(client, prompt(n, seed=7), EVERYTHING, greedy(STEPS))

    lengths = (1500, 3000, 3900)
    refreshed = await asyncio.gather(*(ask(stack.client, n) for n in lengths))
    plain = await asyncio.gather(*(ask(without_refresh.client, n) for n in lengths))
    for with_swaps, without in zip(refreshed, plain, strict=True):
        stats = with_swaps.attention
        assert stats.refreshes >= SWAPS
        assert list(stats.index_versions) == list(range(1, stats.refreshes + 2))
        assert list(without.attention.index_versions) == [1]
        assert with_swaps.token_ids == without.token_ids
    done = await until(
        stack.client,
        lambda now: sum(w.stats.jobs_done for w in now.values()) >= SWAPS * len(lengths),
        WorkerKind.WORKER_KIND_CLUSTERING,
    )
    assert all(worker.stats.jobs_failed == 0 for worker in done.values())


async def test_a_refresh_indexes_what_was_generated(stack: Any) -> None:
    answer = await complete(stack.client, prompt(3000, seed=8), EVERYTHING, greedy(STEPS))
    stats = answer.attention
    # The open segment is clustered anew at each refresh, with what has come since.
    assert stats.refreshes >= SWAPS
    total = (await until(stack.client, bool))["decode-0"].stats
    assert total.refreshes_published >= stats.refreshes
    assert total.refreshes_requested >= total.refreshes_published
    # Engine and clustering worker are on one host.
    assert total.refreshes_in_place == total.refreshes_published


async def test_drift_is_measured_around_a_sample_of_refreshes(stack: Any) -> None:
    options = TacticOptions(threshold=0.9)
    answer = await complete(stack.client, prompt(3000, seed=9), options, greedy(STEPS * 2))
    assert answer.attention.refreshes >= SWAPS
    assert not answer.attention.HasField("attention_share_mean")
    total = (await until(stack.client, lambda now: now["decode-0"].stats.drift_samples))["decode-0"].stats
    assert total.drift_samples <= total.refreshes_published
    for share in (total.attention_share_before_refresh, total.attention_share_after_refresh):
        assert 0.5 < share <= 1
