"""Calls that are cancelled, or overtaken, while they take a session's lease."""

import asyncio
from array import array
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from contract import tokens_of
from scripted_workers import ScriptedWorker, continuation

from tactic.service.sessions import SessionStore, TurnNotFoundError
from tactic.service.sessions.keys import Keys
from tactic.service.sessions.scripts import Scripts
from tactic.v1 import session_pb2


class SlowAnswer:
    """Holds the answer of the first run of one script back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.taken, self._go = asyncio.Event(), asyncio.Event()
        run = Scripts.run

        async def slow(scripts: Scripts, script: str, *args: Any, **options: Any) -> Sequence[str]:
            answer = await run(scripts, script, *args, **options)
            if script == name and not self.taken.is_set():
                self.taken.set()
                await self._go.wait()
            return answer

        monkeypatch.setattr(Scripts, "run", slow)

    async def cancel_meanwhile(self, running: Any) -> None:
        async with asyncio.timeout(20):
            await self.taken.wait()
        running.cancel()
        # Until the front end has heard of it; the lease is taken whether or not it has.
        await asyncio.sleep(0.2)
        self._go.set()


@dataclass(frozen=True)
class Setting:
    """A system of one worker, one of its front ends, and a session there."""

    system: Any
    front: Any
    session: str


@pytest.fixture
async def setting(make_system: Any) -> AsyncIterator[Setting]:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        yield Setting(system, front, await front.session())


async def free(system: Any, session: str) -> None:
    """Waits, for much less than the lease would last, until nobody holds the session."""
    redis = system.fronts[0].front_end._redis
    async with asyncio.timeout(5):
        while await redis.exists(Keys(session).lease):
            await asyncio.sleep(0.005)


async def test_chat_cancelled_while_it_begins_leaves_the_session_free(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, front, session = setting.system, setting.front, setting.session
    slow = SlowAnswer(monkeypatch, "begin_turn")
    await slow.cancel_meanwhile(front.chat(session))
    await free(system, session)
    assert (await front.get(session)).active_turn_id == ""
    assert tokens_of(await front.answer(session)) == continuation(system.prompt("Hi"), 8)


async def test_append_cancelled_while_it_begins_leaves_the_session_free(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, front, session = setting.system, setting.front, setting.session
    slow = SlowAnswer(monkeypatch, "begin_append")
    await slow.cancel_meanwhile(asyncio.create_task(front.append(session, b"lost")))
    await free(system, session)
    assert (await front.append(session, b"found", prefill=False)).finished


async def test_resumption_cancelled_while_it_takes_the_turn_leaves_it_resumable(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, front, session = setting.system, setting.front, setting.session
    await left_behind(front, session, "t")
    slow = SlowAnswer(monkeypatch, "resume_turn")
    await slow.cancel_meanwhile(front.chat(session, turn_id="t", resume_after_seq=0))
    await free(system, session)
    assert (await front.get(session)).active_turn_id == ""


async def test_turn_that_cannot_be_read_back_leaves_the_session_free(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, front, session = setting.system, setting.front, setting.session
    await left_behind(front, session, "t")
    turns = front.front_end._turns
    recover, reading = turns._recover, asyncio.Event()

    async def slow(lease: Any) -> Any:
        if not reading.is_set():
            reading.set()
            await asyncio.Event().wait()
        return await recover(lease)

    monkeypatch.setattr(turns, "_recover", slow)
    call = front.chat(session, turn_id="t", resume_after_seq=0)
    async with asyncio.timeout(20):
        await reading.wait()
    call.cancel()
    await free(system, session)
    assert (await front.get(session)).active_turn_id == ""


@pytest.mark.parametrize("method", ["chat", "fork"])
async def test_turn_dropped_after_it_was_seen_is_in_nobodys_way(
    setting: Setting, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    front, session = setting.front, setting.session
    store = front.front_end._turns._turns
    read = await front.front_end._turns._sessions.get(session)
    lease, _ = await store.begin(read, "x", request=b"", digest="", prompt=array("I", [1]))
    get, dropped = SessionStore.get, asyncio.Event()

    async def drop_after_reading(sessions: SessionStore, session_id: str) -> Any:
        found = await get(sessions, session_id)
        if not dropped.is_set():
            assert found.active_turn == "x"
            dropped.set()
            await store.drop(lease)
        return found

    monkeypatch.setattr(SessionStore, "get", drop_after_reading)
    if method == "chat":
        assert len(tokens_of(await front.answer(session))) == 8
    else:
        request = session_pb2.ForkSessionRequest(session_id=session)
        assert (await front.sessions.ForkSession(request)).parent_session_id == session
    assert dropped.is_set()
    with pytest.raises(TurnNotFoundError):
        await store.resume(session, "x")


async def left_behind(front: Any, session: str, turn_id: str) -> None:
    """A turn whose front end died before its first frame."""
    turns = front.front_end._turns
    lease, _ = await turns._turns.begin(
        await turns._sessions.get(session), turn_id, request=b"", digest="", prompt=array("I", [1])
    )
    redis = front.front_end._redis
    await redis.delete(Keys(lease.session_id).lease)
