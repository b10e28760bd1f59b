"""Random interleavings of front ends that append, generate, crash and return, against a model in memory."""

import asyncio
from array import array
from collections.abc import Coroutine
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tactic.service.sessions import (
    AppendStore,
    FinishedAppend,
    Lease,
    SessionError,
    SessionStore,
    TurnStore,
    connect,
)
from tactic.service.sessions.keys import Keys

TTL_S = 600.0
names = count()


@dataclass
class Model:
    """What a session must be."""

    log: list[int] = field(default_factory=list)
    holder: Lease | None = None
    """The lease that is good, if one is."""
    turn: str = ""
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    append: str = ""
    offset: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    """Bytes, and here as many tokens, of each finished append."""


class Interleavings(RuleBasedStateMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.redis = connect(self.url)
        self.sessions = SessionStore(self.redis)
        self.appends = AppendStore(self.redis, TTL_S)
        self.turns = TurnStore(self.redis, TTL_S, TTL_S)
        self.models: dict[str, Model] = {}
        self.stale: list[Lease] = []
        self.ids = count()

    def teardown(self) -> None:
        self.do(self.redis.aclose())
        self.runner.close()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    def refused(self, work: Coroutine[Any, Any, Any]) -> None:
        with pytest.raises(SessionError):
            self.do(work)

    def pick(self, data: st.DataObject) -> tuple[str, Model]:
        name = data.draw(st.sampled_from(sorted(self.models)))
        return name, self.models[name]

    def fresh(self) -> list[int]:
        return [next(self.ids) for _ in range(1 + next(self.ids) % 3)]

    @initialize()
    def create(self) -> None:
        name = f"interleaved-{next(names)}"
        self.do(self.sessions.create(name, "m", {}))
        self.models[name] = Model()

    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        name, model = self.pick(data)
        child = f"interleaved-{next(names)}"
        self.do(self._fork(name, child))
        self.models[child] = Model(log=list(model.log))

    async def _fork(self, name: str, child: str) -> None:
        await self.sessions.fork(await self.sessions.get(name), child)

    @rule(data=st.data())
    def begin_turn(self, data: st.DataObject) -> None:
        name, model = self.pick(data)
        turn, prompt = f"t{next(self.ids)}", self.fresh()
        if model.holder or model.turn or model.append:
            self.refused(self._begin(name, turn, prompt))
        else:
            model.holder = self.do(self._begin(name, turn, prompt))
            model.turn, model.prompt, model.output = turn, prompt, []

    async def _begin(self, name: str, turn: str, prompt: list[int]) -> Lease:
        session = await self.sessions.get(name)
        lease, _ = await self.turns.begin(session, turn, request=b"", digest="", prompt=array("I", prompt))
        return lease

    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        _, model = self.pick(data)
        if model.turn and model.holder:
            token = next(self.ids)
            frames = len(model.output)
            self.do(self.turns.record(model.holder, frames + 1, str(token).encode()))
            model.output.append(token)

    @rule(data=st.data(), finish=st.booleans())
    def end_turn(self, data: st.DataObject, finish: bool) -> None:
        name, model = self.pick(data)
        if not (model.turn and model.holder):
            return
        last = (len(model.output) + 1, b"end") if finish else None
        self.do(self._end(name, model, last))
        if model.output or finish:
            model.log += model.prompt + model.output
        self.stale.append(model.holder)
        model.holder, model.turn = None, ""

    async def _end(self, name: str, model: Model, last: tuple[int, bytes] | None) -> None:
        assert model.holder is not None
        turn = await self.turns.get(name, model.turn)
        await self.turns.end(model.holder, turn, array("I", model.output), last_frame=last)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """The holder dies, and its lease runs out."""
        name, model = self.pick(data)
        if model.holder:
            self.do(self.redis.expire(Keys(name).lease, 0))  # type: ignore[attr-defined]  # beyond the protocol
            self.stale.append(model.holder)
            model.holder = None

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        """Another front end takes a left turn over and logs what its frames acknowledge."""
        name, model = self.pick(data)
        if not model.turn or model.holder:
            return
        resumed = self.do(self.turns.resume(name, model.turn))
        assert resumed.outcome == "run"
        frames = self.do(self.turns.frames(name, model.turn, 0))
        assert [int(frame) for frame in frames] == model.output
        model.holder = resumed.lease

    @rule(data=st.data(), take_over=st.booleans(), last=st.booleans())
    def append(self, data: st.DataObject, take_over: bool, last: bool) -> None:
        name, model = self.pick(data)
        append = model.append or f"a{next(self.ids)}"
        if model.turn:
            self.refused(self.appends.begin(name, append))
            return
        if model.holder is None or take_over:
            if model.holder:
                self.stale.append(model.holder)
            model.holder = self.do(self.appends.begin(name, append))
        assert model.holder is not None
        tokens = self.fresh()
        self.do(self._add(model.holder, model.offset, tokens, last))
        model.log += tokens
        model.append, model.offset = append, model.offset + len(tokens)
        if last:
            model.finished[append] = model.offset
            self.stale.append(model.holder)
            model.holder, model.append, model.offset = None, "", 0

    @rule(data=st.data())
    def repeat_append(self, data: st.DataObject) -> None:
        """A client has not heard that its append is finished."""
        name, model = self.pick(data)
        if model.finished:
            append, size = data.draw(st.sampled_from(sorted(model.finished.items())))
            assert self.do(self.appends.begin(name, append)) == FinishedAppend(size, size)

    async def _add(self, lease: Lease, offset: int, tokens: list[int], last: bool) -> None:
        await self.appends.add(
            lease,
            offset=offset,
            size=len(tokens),
            token_ids=array("I", tokens),
            carry=b"",
            anchor="",
            last=last,
        )

    @rule()
    def stale_writers_write(self) -> None:
        for lease in self.stale:
            model = self.models[lease.session_id]
            if model.holder is None and model.turn:
                # Lapsed but not taken over: the fence is still good, by design.
                continue
            if lease.kind == "append":
                if model.append == lease.holder_id and model.holder is None:
                    continue
                self.refused(self._add(lease, model.offset, [0], False))
            else:
                self.refused(self.turns.record(lease, 10**6, b"0"))
                self.refused(self.turns.drop(lease))

    @invariant()
    def logs_are_equal(self) -> None:
        for name, model in self.models.items():
            session = self.do(self.sessions.get(name))
            assert list(self.do(self.sessions.read_log(session))) == model.log
            assert session.active_turn == model.turn
            assert (session.append.append_id if session.append else "") == model.append


def test_interleavings(redis_url: str) -> None:
    Interleavings.url = redis_url
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
