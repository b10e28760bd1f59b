"""Random traffic on real engines while their clustering worker is killed and stopped: no wrong token."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field

import pytest
from turns import DENSE, EVERYTHING, clustering_worker, complete, greedy, prompt, workers

from tactic.service.client import Answer, TacticClient, TacticOptions, WorkerKind

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

EVENTS, MOST_RUNNING, STEPS = 300, 6, 80
MOVES = {"join": 60, "abort": 20, "end": 40, "kill": 2, "stop": 4, "go_on": 6}
LENGTHS = (1100, 1500, 2100, 2600)
# Nothing may be left out, but all is read through the index: the largest fp32 number below 1.
THROUGH_INDEX = TacticOptions(threshold=1 - 2**-24, estimator="exact")
KINDS = (EVERYTHING, THROUGH_INDEX)


@dataclass(eq=False)
class Turn:
    """A request under way, and what it must answer."""

    expected: list[int]
    answer: Answer = field(default_factory=Answer)
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, client: TacticClient, token_ids: list[int], tactic: TacticOptions) -> None:
        events = client.complete(token_ids, tactic=tactic, sampling=greedy(len(self.expected)))
        async for event in events:
            self.answer.add(event)
            if self.answer.token_ids:
                self.begun.set()

    def check(self) -> None:
        """It may have been cut off, but not have gone astray."""
        told = self.answer.token_ids
        assert told == self.expected[: len(told)]
        if self.answer.finished:
            assert len(told) == len(self.expected)


def signal_process(pid: int, number: signal.Signals) -> None:
    """The process may have been given up and killed meanwhile."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def test_random_traffic_while_the_clustering_worker_is_killed_and_stopped(client: TacticClient) -> None:
    draw, seen = random.Random(0), Counter[str]()
    # Prompts share prefixes: their index outlives whoever computed it.
    longest = prompt(max(LENGTHS), seed=11)
    prompts = {n: longest[:n] for n in LENGTHS}
    asked = (complete(client, p, DENSE, greedy(STEPS)) for p in prompts.values())
    expected = dict(zip(LENGTHS, [a.token_ids for a in await asyncio.gather(*asked)], strict=True))
    before = await workers(client, WorkerKind.WORKER_KIND_DECODE)
    running: dict[asyncio.Task[None], Turn] = {}
    turns: list[Turn] = []
    stopped = 0

    while seen.total() < EVENTS:
        (event,) = draw.choices(list(MOVES), list(MOVES.values()))
        if event == "join" and len(running) < MOST_RUNNING:
            n = draw.choice(LENGTHS)
            turn = Turn(expected[n][: draw.randint(1, STEPS)])
            task = asyncio.create_task(turn.run(client, prompts[n], draw.choice(KINDS)))
            running[task] = turn
            turns.append(turn)
        elif event == "abort" and running:
            task = draw.choice(list(running))
            if draw.random() < 0.7:
                await asyncio.wait(
                    [task, begun := asyncio.ensure_future(running[task].begun.wait())],
                    return_when=asyncio.FIRST_COMPLETED,
                )
                begun.cancel()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif event == "end" and running:
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        elif event in ("kill", "stop") and not stopped:
            victim = (await clustering_worker(client)).pid
            stopped = victim if event == "stop" else 0
            signal_process(victim, signal.SIGSTOP if stopped else signal.SIGKILL)
        elif event == "go_on" and stopped:
            signal_process(stopped, signal.SIGCONT)
            stopped = 0
        else:
            continue
        seen[event] += 1
        for task in [task for task in running if task.done()]:
            running.pop(task).check()
            if not task.cancelled():
                await task

    if stopped:
        signal_process(stopped, signal.SIGCONT)
    await asyncio.gather(*running)
    for turn in turns:
        turn.check()
    complete_turns = [turn.answer for turn in turns if turn.answer.finished]
    assert min(seen[event] for event in MOVES) > 0, seen
    assert len(complete_turns) > EVENTS / 6
    # A broken invariant of the index would have ended the engine, whose requests then run elsewhere.
    now = await workers(client, WorkerKind.WORKER_KIND_DECODE)
    assert {name: (w.pid, w.restarts) for name, w in now.items()} == {
        name: (w.pid, w.restarts) for name, w in before.items()
    }
    assert sum(answer.attention.refreshes for answer in complete_turns) > 0
    assert sum(answer.attention.dense_steps == 0 for answer in complete_turns) > len(complete_turns) / 4
    stats = [worker.stats for worker in now.values()]
    assert sum(s.tokens_index_reused for s in stats) > 0
    assert sum(s.refreshes_dropped for s in stats) > 0
