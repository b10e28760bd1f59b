"""Turns of a running system, run to their end: what integration and fault tests ask of it."""

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any

from tactic.service.client import (
    Answer,
    AttentionMode,
    SamplingOptions,
    TacticClient,
    TacticOptions,
    Worker,
    WorkerKind,
    WorkerState,
)

DENSE = TacticOptions(mode=AttentionMode.ATTENTION_MODE_DENSE)
EVERYTHING = TacticOptions(mode=AttentionMode.ATTENTION_MODE_TACTIC, threshold=1.0)
"""Through the index and the sparse path, but nothing may be left out: equals DENSE, token for token."""


def prompt(length: int, seed: int = 0) -> list[int]:
    """Random bytes, as token ids of the tiny model."""
    draw = random.Random(f"{seed}-{length}")
    return [draw.randrange(256) for _ in range(length)]


def text(length: int, seed: int = 0) -> str:
    """Random words of ASCII: `length` characters and, with the tiny model, tokens."""
    draw = random.Random(f"text-{seed}")
    words = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz  ") for _ in range(length))
    return words[:length]


def greedy(max_tokens: int, **other: Any) -> SamplingOptions:
    """Always as many tokens as asked for."""
    return SamplingOptions(temperature=0, max_tokens=max_tokens, ignore_eos=True, **other)


async def complete(
    client: TacticClient,
    token_ids: list[int],
    tactic: TacticOptions,
    sampling: SamplingOptions,
) -> Answer:
    """A completion, from its first event to its last."""
    return await Answer.collect(client.complete(token_ids, tactic=tactic, sampling=sampling))


async def chat(
    client: TacticClient, session_id: str, message: str, tactic: TacticOptions, max_tokens: int
) -> Answer:
    """A turn on a session."""
    events = client.chat(message, session_id=session_id, tactic=tactic, sampling=greedy(max_tokens))
    return await Answer.collect(events)


def worker_of(answer: Answer) -> str:
    """The decode worker that ran it."""
    assert answer.started is not None
    return answer.started.worker_id


async def workers(client: TacticClient, kind: WorkerKind) -> Mapping[str, Worker]:
    """The workers of a kind, by name."""
    return {worker.worker_id: worker for worker in await client.list_workers() if worker.kind == kind}


async def until(
    client: TacticClient,
    condition: Callable[[Mapping[str, Worker]], Any],
    kind: WorkerKind = WorkerKind.WORKER_KIND_DECODE,
    timeout_s: float = 180,
) -> Mapping[str, Worker]:
    """Waits until the workers of a kind are as wanted; returns them."""
    async with asyncio.timeout(timeout_s):
        while not condition(now := await workers(client, kind)):
            await asyncio.sleep(0.1)
    return now


async def clustering_worker(client: TacticClient) -> Worker:
    """The clustering worker, once it is up."""

    def ready(now: Mapping[str, Worker]) -> bool:
        return all(w.pid and w.state == WorkerState.WORKER_STATE_READY for w in now.values())

    return next(iter((await until(client, ready, WorkerKind.WORKER_KIND_CLUSTERING)).values()))
