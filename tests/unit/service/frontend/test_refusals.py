"""What refusals say: which field, and no more than a status can carry."""

from typing import Any

import grpc
import pytest
from contract import refused
from scripted_workers import ScriptedWorker

from tactic.service.client import Answer, InvalidRequestError, NotFoundError, TacticClient
from tactic.v1 import session_pb2

Code = grpc.StatusCode


@pytest.mark.parametrize("count", [1, 100, 20_000])
async def test_many_faults_are_told_by_the_first_ones(make_system: Any, count: int) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        async with TacticClient(front.address) as client:
            with pytest.raises(InvalidRequestError, match="must be below 259") as caught:
                await Answer.collect(client.complete([2**31] * count))
    error = caught.value
    named = min(count, 8)
    assert [v.field for v in error.violations] == [f"tokens.ids[{i}]" for i in range(named)]
    assert error.message.endswith(f"; and {count - named} more") == (count > named)


async def test_long_names_are_shortened(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        async with TacticClient(front.address) as client:
            with pytest.raises(NotFoundError, match="is not served here; 'tiny' is") as caught:
                await client.create_session(model="🐋" * 20_000)
            assert caught.value.reason == "MODEL_NOT_FOUND"
            labels = {f"{'🐋' * 1100}{i}": "" for i in range(64)}
            with pytest.raises(InvalidRequestError, match="and 56 more"):
                await client.create_session(labels=labels)


async def test_taken_name_of_a_fork_is_blamed_on_its_own_field(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        fork = session_pb2.ForkSessionRequest(session_id=session, new_session_id=session)
        refusal = await refused(front.sessions.ForkSession(fork))
        assert (refusal.code, refusal.reason) == (Code.ALREADY_EXISTS, "SESSION_EXISTS")
        assert list(refusal.fields) == ["new_session_id"]
        missing = session_pb2.ForkSessionRequest(session_id="nobody", new_session_id="x")
        assert list((await refused(front.sessions.ForkSession(missing))).fields) == ["session_id"]


async def test_session_of_an_append_is_blamed_where_its_header_names_it(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        refusal = await refused(front.append("nobody", b"x"))
        assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "SESSION_NOT_FOUND")
        assert list(refusal.fields) == ["header.session_id"]
        session = await front.session()
        await front.append(session, b"x", append_id="a", last=False)
        refusal = await refused(front.append(session, b"y", append_id="b"))
        assert (refusal.reason, list(refusal.fields)) == ("APPEND_OPEN", ["header.session_id"])
