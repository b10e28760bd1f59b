"""Two decode workers under load, one killed: which acknowledged turns are there afterwards, and the pause."""

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, field
from typing import Any

from turns import greedy, text, until, worker_of, workers

from tactic.service.client import Answer, TacticClient, WorkerKind, WorkerState

VICTIM = "decode-0"
TURNS_S = 120.0
"""Longest for the turns during which the worker is killed."""


@dataclass
class Talk:
    """A session, what was acknowledged on it, and how long it went without a token."""

    session: str
    acknowledged: list[Answer] = field(default_factory=list)
    generated: int = 0
    longest_pause_s: float = 0.0

    async def turn(self, client: TacticClient, tokens: int) -> None:
        """One turn, to its end."""
        answer, last = Answer(), time.monotonic()
        async for event in client.chat("And then?", session_id=self.session, sampling=greedy(tokens)):
            answer.add(event)
            now = time.monotonic()
            if len(answer.token_ids) > self.generated:
                self.longest_pause_s = max(self.longest_pause_s, now - last)
                last, self.generated = now, len(answer.token_ids)
        self.generated = 0
        self.acknowledged.append(answer)

    async def lost(self, client: TacticClient) -> int:
        """Acknowledged turns, and tokens of the last one, that are not in the session any more."""
        now = await client.get_session(self.session)
        usage = self.acknowledged[-1].usage
        missing = usage.prompt_tokens + usage.completion_tokens - now.token_count
        return max(0, len(self.acknowledged) - now.turn_count) + max(0, missing)


async def lose_a_worker(
    client: TacticClient, *, sessions: int, context: int, turns: int, tokens: int, back_within_s: float
) -> dict[str, Any]:
    """Runs turns on all sessions at once, and kills a decode worker in the middle of the second ones.

    Args:
        client: of a deployment with two decode workers.
        sessions: that talk at once.
        context: characters that each is given first.
        turns: of each session, three at least.
        tokens: of each turn.
        back_within_s: longest that the killed worker is waited for, once all turns are done.
    """
    talks = [Talk((await client.create_session()).session_id) for _ in range(sessions)]
    for seed, talk in enumerate(talks):
        await client.append_context(talk.session, text(context, seed=seed), prefill=False)
    await asyncio.gather(*(talk.turn(client, tokens) for talk in talks))
    homes = [worker_of(talk.acknowledged[-1]) for talk in talks]
    victim = (await workers(client, WorkerKind.WORKER_KIND_DECODE))[VICTIM]

    async def rest(talk: Talk) -> None:
        for _ in range(turns - 1):
            await talk.turn(client, tokens)

    running = asyncio.gather(*(rest(talk) for talk in talks))
    while sum(talk.generated for talk in talks) < sessions * tokens // 2 and not running.done():
        await asyncio.sleep(0.01)
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    async with asyncio.timeout(TURNS_S):
        await running
    back_s: float | None = None
    with contextlib.suppress(TimeoutError):
        await until(
            client,
            lambda now: (
                now[VICTIM].restarts > victim.restarts and now[VICTIM].state == WorkerState.WORKER_STATE_READY
            ),
            timeout_s=back_within_s,
        )
        back_s = time.monotonic() - killed
    lost = [await talk.lost(client) for talk in talks]
    return {
        "sessions": sessions,
        "on_the_killed_worker": homes.count(VICTIM),
        "acknowledged_turns": sum(len(talk.acknowledged) for talk in talks),
        "lost": sum(lost),
        "longest_pause_s": max(talk.longest_pause_s for talk in talks),
        "worker_back_after_s": back_s,
    }
