"""An index that does not fit its memory: slower, never wrong, and told."""

import asyncio

import pytest
from turns import DENSE, EVERYTHING, complete, greedy, prompt, until, workers

from tactic.service.client import TacticClient, TacticOptions, WorkerKind

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

STEPS, LENGTH, REQUESTS = 24, 3000, 10
SPARSE = TacticOptions(threshold=0.9, measure=True)


async def test_what_finds_no_room_in_the_index_is_read_exactly(client: TacticClient) -> None:
    before = await workers(client, WorkerKind.WORKER_KIND_DECODE)
    prompts = [prompt(LENGTH, seed=100 + n) for n in range(REQUESTS)]
    dense = await asyncio.gather(*(complete(client, p, DENSE, greedy(STEPS)) for p in prompts[:2]))
    kinds = [EVERYTHING, EVERYTHING] + [SPARSE] * (REQUESTS - 2)
    asked = (complete(client, p, kind, greedy(STEPS)) for p, kind in zip(prompts, kinds, strict=True))
    answers = await asyncio.gather(*asked)
    for answer, expected in zip(answers[:2], dense, strict=True):
        assert answer.token_ids == expected.token_ids
    assert min(answer.attention.tokens_clustered for answer in answers) < LENGTH - 1
    for answer in answers[2:]:
        stats = answer.attention
        assert stats.dense_steps == stats.decode_steps or stats.attention_share_mean >= 0.85

    def told(worker: str, now: int) -> bool:
        return now > before[worker].stats.index_allocation_failures

    after = await until(
        client,
        lambda now: any(told(name, worker.stats.index_allocation_failures) for name, worker in now.items()),
    )
    for worker in after.values():
        assert worker.stats.index_bytes_used <= worker.stats.index_bytes_total
        assert worker.restarts == before[worker.worker_id].restarts
