"""Random traffic over several front ends and workers that die, checked against what clients have seen."""

import asyncio
import logging
import random
from array import array
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from contract import Refusal, tokens_of
from scripted_workers import ScriptedWorker, continuation

from tactic.service.sessions import SessionStore, connect

SESSIONS, STEPS = 6, 12


@dataclass
class Client:
    """One session, and what its log must be."""

    system: Any
    session: str
    random: random.Random
    log: list[int] = field(default_factory=list)
    tail: str = ""
    turns: int = 0
    cut_short: int = 0

    def front(self) -> Any:
        return self.random.choice(self.system.fronts)

    async def step(self, number: int) -> None:
        if self.random.random() < 0.25:
            await self.append(f"context {number}")
        else:
            await self.turn(f"message {number}", f"turn-{number}")

    async def append(self, text: str) -> None:
        opening, _ = self.system.template.open_context(self.tail, self.turns)
        await self.front().append(self.session, text.encode())
        self.log += [*opening, *self.system.tokenizer.encode(text, special=False)]
        self.tail = "context"

    async def turn(self, text: str, turn_id: str) -> None:
        self.random.choice(self.system.workers).die_after = self.random.randrange(60)
        prompt = self.log + list(self.system.template.prompt(self.tail, self.turns, [user(text)]))
        whole = continuation(prompt, 60)
        seen: list[Any] = []
        call = self.front().chat(self.session, text, 60, turn_id=turn_id)
        patience = self.random.choice([0, 1, 5, 20, 1000])
        try:
            while (frame := await call.read()) is not grpc.aio.EOF:
                seen.append(frame)
                if len(tokens_of(seen)) >= patience:
                    break
        except grpc.aio.AioRpcError as error:
            refusal = Refusal.of(error)
            # All workers were dead at the same moment; nothing has changed.
            assert (refusal.reason, seen) == ("NO_WORKER", [])
            return
        call.cancel()
        finished = bool(seen) and seen[-1].HasField("finished")
        if not finished and self.random.random() < 0.6:
            after = seen[-1].seq if seen else 0
            seen += await self.front().answer(self.session, text, 60, turn_id=turn_id, resume_after_seq=after)
            finished = True
        elif not finished:
            self.cut_short += 1
        assert [frame.seq for frame in seen] == list(range(1, len(seen) + 1))
        assert tokens_of(seen) == whole[: len(tokens_of(seen))]
        logged = await self.logged(len(prompt))
        assert logged == 60 if finished else logged >= len(tokens_of(seen))
        if logged or finished:
            self.log = prompt + whole[:logged]
            self.tail, self.turns = "assistant", self.turns + 1

    async def logged(self, prompt: int) -> int:
        """Returns how many tokens of its answer the turn has left in the log."""
        async with asyncio.timeout(30):
            while (now := await self.front().get(self.session)).active_turn_id:
                await asyncio.sleep(0.002)
        return max(0, now.token_count - prompt)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize("seed", [1, 2])
async def test_random_traffic(make_system: Any, caplog: pytest.LogCaptureFixture, seed: int) -> None:
    workers = [ScriptedWorker(f"w{i}") for i in range(3)]
    async with make_system(*workers) as system:
        fronts = [await system.front() for _ in range(2)]
        clients = [
            Client(system, await fronts[0].session(), random.Random(f"{seed}-{i}")) for i in range(SESSIONS)
        ]

        async def run(client: Client) -> None:
            for number in range(STEPS):
                await client.step(number)

        async def supervise() -> None:
            while True:
                await asyncio.sleep(0.01)
                await system.supervisor.publish()

        supervising = asyncio.create_task(supervise())
        with caplog.at_level(logging.ERROR):
            await asyncio.gather(*map(run, clients))
        supervising.cancel()
        assert not [record for record in caplog.records if "a defect in" in record.message]
        redis = connect(system._flags["redis.url"])
        store = SessionStore(redis)
        for client in clients:
            session = await store.get(client.session)
            assert await store.read_log(session) == array("I", client.log)
            assert session.turns == client.turns
        await redis.aclose()
        assert sum(client.cut_short for client in clients) > 5
