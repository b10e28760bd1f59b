"""Each promise of the store, one by one."""

import asyncio
from array import array
from uuid import uuid4

import pytest

from tactic.service.sessions import (
    AppendOpenError,
    AppendStore,
    FinishedAppend,
    Lease,
    LeaseKeeper,
    LeaseLostError,
    LogMovedError,
    OrphanedTurnError,
    RedisClient,
    SessionBusyError,
    SessionExistsError,
    SessionNotFoundError,
    SessionStore,
    TurnExistsError,
    TurnNotFoundError,
    TurnStore,
    WrongOffsetError,
)
from tactic.service.sessions.keys import Keys

TTL_S = 30.0


class Stores:
    def __init__(self, redis: RedisClient) -> None:
        self.redis = redis
        self.sessions = SessionStore(redis)
        self.appends = AppendStore(redis, TTL_S)
        self.turns = TurnStore(redis, TTL_S, replay_ttl_s=60)
        self.leases = LeaseKeeper(redis, TTL_S)

    async def new(self) -> str:
        return (await self.sessions.create(uuid4().hex, "m", {})).session_id

    async def log(self, session_id: str) -> list[int]:
        return list(await self.sessions.read_log(await self.sessions.get(session_id)))

    async def begin(self, session_id: str, turn_id: str, prompt: list[int]) -> Lease:
        session = await self.sessions.get(session_id)
        lease, turn = await self.turns.begin(
            session, turn_id, request=b"r", digest="d", prompt=array("I", prompt)
        )
        assert turn == await self.turns.get(session_id, turn_id)
        return lease

    async def append(self, lease: Lease, offset: int, tokens: list[int], *, last: bool = False) -> None:
        await self.appends.add(
            lease,
            offset=offset,
            size=len(tokens),
            token_ids=array("I", tokens),
            carry=b"\xc3",
            anchor="é",
            last=last,
        )

    async def end(self, lease: Lease, output: list[int], last: tuple[int, bytes] | None) -> None:
        turn = await self.turns.get(lease.session_id, lease.holder_id)
        await self.turns.end(lease, turn, array("I", output), last_frame=last)

    async def lapse(self, session_id: str) -> None:
        """What time does to the lease of a front end that died."""
        await self.redis.expire(Keys(session_id).lease, 0)  # type: ignore[attr-defined]  # beyond the protocol


@pytest.fixture
def stores(redis: RedisClient) -> Stores:
    return Stores(redis)


async def append_all(stores: Stores, session_id: str, tokens: list[int]) -> None:
    lease = await stores.appends.begin(session_id, uuid4().hex)
    assert isinstance(lease, Lease)
    await stores.append(lease, 0, tokens, last=True)


async def test_create_twice_is_refused_and_keeps_the_first(stores: Stores) -> None:
    name = uuid4().hex
    await stores.sessions.create(name, "first", {"a": "ü"})
    with pytest.raises(SessionExistsError):
        await stores.sessions.create(name, "second", {})
    session = await stores.sessions.get(name)
    assert (session.model, session.labels, session.tokens) == ("first", {"a": "ü"}, 0)


async def test_pages_are_stable_while_sessions_come_and_go(stores: Stores) -> None:
    prefix = uuid4().hex
    names = [f"{prefix}-{i}" for i in range(5)]
    for name in names:
        await stores.sessions.create(name, "m", {})
    first = await stores.sessions.page(2, after=prefix)
    await stores.sessions.delete(names[1])
    second = await stores.sessions.page(2, after=first[-1].session_id)
    assert [s.session_id for s in first + second] == names[:4]


async def test_delete_leaves_no_keys(stores: Stores) -> None:
    session = await stores.new()
    await append_all(stores, session, [1, 2])
    lease = await stores.begin(session, "t", [3])
    await stores.turns.record(lease, 1, b"f")
    await stores.sessions.delete(session)
    left = await stores.redis.keys(Keys(session).prefix + "*")  # type: ignore[attr-defined]  # beyond the protocol
    assert left == [Keys(session).tombstone.encode()]
    with pytest.raises(SessionNotFoundError):
        await stores.turns.record(lease, 2, b"f")
    with pytest.raises(SessionNotFoundError):
        await stores.sessions.delete(session)
    assert session not in [s.session_id for s in await stores.sessions.page(1000)]


async def test_an_old_fence_means_nothing_to_a_new_session_of_the_same_name(stores: Stores) -> None:
    name = await stores.new()
    lease = await stores.begin(name, "t", [1])
    await stores.sessions.delete(name)
    await stores.sessions.create(name, "m", {})
    with pytest.raises(LeaseLostError):
        await stores.turns.record(lease, 1, b"f")


async def test_fork_is_independent_of_its_parent(stores: Stores) -> None:
    parent = await stores.new()
    tokens = list(range(4096 * 40 + 7))
    await append_all(stores, parent, tokens)
    child = await stores.sessions.fork(await stores.sessions.get(parent), uuid4().hex)
    await append_all(stores, child.session_id, [1])
    await stores.sessions.delete(parent)
    assert child.parent == parent
    assert await stores.log(child.session_id) == [*tokens, 1]


async def test_fork_copies_the_log_as_it_was_read(stores: Stores) -> None:
    parent = await stores.new()
    await append_all(stores, parent, [1, 2])
    then = await stores.sessions.get(parent)
    await append_all(stores, parent, [3])
    child = await stores.sessions.fork(then, uuid4().hex)
    assert await stores.log(child.session_id) == [1, 2]
    with pytest.raises(SessionExistsError):
        await stores.sessions.fork(then, child.session_id)


async def test_append_is_taken_over_by_its_id_and_the_old_writer_is_refused(stores: Stores) -> None:
    session = await stores.new()
    old = await stores.appends.begin(session, "a")
    assert isinstance(old, Lease)
    await stores.append(old, 0, [1])
    with pytest.raises(SessionBusyError, match="append 'a'"):
        await stores.appends.begin(session, "b")
    new = await stores.appends.begin(session, "a")
    assert isinstance(new, Lease)
    with pytest.raises(LeaseLostError):
        await stores.append(old, 1, [2])
    append = (await stores.sessions.get(session)).append
    assert append is not None
    assert (append.next_offset, append.carry, append.anchor) == (1, b"\xc3", "é")
    with pytest.raises(WrongOffsetError, match="1 bytes are durable"):
        await stores.append(new, 2, [2])
    await stores.append(new, 1, [2], last=True)
    assert await stores.log(session) == [1, 2]
    assert await stores.appends.begin(session, "a") == FinishedAppend(offset=2, tokens=2)


async def test_open_append_bars_turns_and_other_appends(stores: Stores) -> None:
    session = await stores.new()
    lease = await stores.appends.begin(session, "a")
    assert isinstance(lease, Lease)
    await stores.append(lease, 0, [1])
    await stores.leases.release(lease)
    for attempt in (stores.begin(session, "t", [9]), stores.appends.begin(session, "b")):
        with pytest.raises(AppendOpenError, match="offset 1"):
            await attempt


async def test_finished_appends_are_known_for_good(stores: Stores) -> None:
    session = await stores.new()
    for append_id, tokens in (("a", [1, 2]), ("b", [3])):
        lease = await stores.appends.begin(session, append_id)
        assert isinstance(lease, Lease)
        await stores.append(lease, 0, tokens, last=True)
    open_one = await stores.appends.begin(session, "c")
    assert isinstance(open_one, Lease)
    assert await stores.appends.begin(session, "a") == FinishedAppend(offset=2, tokens=2)
    assert await stores.appends.begin(session, "b") == FinishedAppend(offset=1, tokens=1)
    await stores.leases.release(open_one)
    # A fork has none of its own yet.
    child = await stores.sessions.fork(await stores.sessions.get(session), uuid4().hex)
    assert isinstance(await stores.appends.begin(child.session_id, "a"), Lease)


async def test_second_turn_at_once_is_refused(stores: Stores) -> None:
    session = await stores.new()
    await stores.begin(session, "t", [1])
    with pytest.raises(SessionBusyError, match="turn 't'"):
        await stores.begin(session, "u", [1])
    with pytest.raises(SessionBusyError, match="turn 't'"):
        await stores.appends.begin(session, "a")
    with pytest.raises(TurnExistsError):
        await stores.begin(session, "t", [1])


async def test_turn_enters_the_log_as_one(stores: Stores) -> None:
    session = await stores.new()
    lease = await stores.begin(session, "t", [1, 2])
    await stores.turns.record(lease, 1, b"one")
    await stores.turns.record(lease, 1, b"one again")
    assert await stores.log(session) == []
    await stores.end(lease, [3, 4], (2, b"two"))
    after = await stores.sessions.get(session)
    assert (after.tokens, after.turns, after.tail, after.active_turn) == (4, 1, "assistant", "")
    assert await stores.log(session) == [1, 2, 3, 4]
    assert await stores.turns.frames(session, "t", 0) == [b"one", b"two"]
    assert await stores.turns.frames(session, "t", 1) == [b"two"]
    assert (await stores.turns.resume(session, "t")).outcome == "finished"


async def test_turn_begins_only_on_the_log_that_was_read(stores: Stores) -> None:
    session = await stores.new()
    read = await stores.sessions.get(session)
    await append_all(stores, session, [1])
    with pytest.raises(LogMovedError):
        await stores.turns.begin(read, "t", request=b"", digest="", prompt=array("I", [2]))


async def test_dropped_turn_leaves_no_trace(stores: Stores) -> None:
    session = await stores.new()
    before = await stores.sessions.get(session)
    await stores.turns.drop(await stores.begin(session, "t", [1]))
    assert await stores.sessions.get(session) == before
    with pytest.raises(TurnNotFoundError):
        await stores.turns.resume(session, "t")
    await stores.begin(session, "t", [1])


async def test_interrupted_turn_goes_on_after_what_is_logged(stores: Stores) -> None:
    session = await stores.new()
    lease = await stores.begin(session, "t", [1])
    await stores.end(lease, [2], None)
    assert await stores.log(session) == [1, 2]
    resumed = await stores.turns.resume(session, "t")
    assert resumed.outcome == "run"
    assert resumed.lease is not None
    assert (await stores.turns.resume(session, "t")).outcome == "follow"
    await stores.end(resumed.lease, [2, 3], (2, b"f"))
    after = await stores.sessions.get(session)
    assert (await stores.log(session), after.turns) == ([1, 2, 3], 1)


async def test_turn_interrupted_before_its_output_changes_nothing_and_can_go_on(stores: Stores) -> None:
    session = await stores.new()
    await stores.end(await stores.begin(session, "t", [1]), [], None)
    assert ((await stores.sessions.get(session)).turns, await stores.log(session)) == (0, [])
    resumed = await stores.turns.resume(session, "t")
    assert resumed.lease is not None
    await stores.end(resumed.lease, [2], (1, b"f"))
    assert await stores.log(session) == [1, 2]


async def test_interrupted_turn_cannot_go_on_once_the_session_has(stores: Stores) -> None:
    session = await stores.new()
    await stores.end(await stores.begin(session, "t", [1]), [2], None)
    await append_all(stores, session, [3])
    assert (await stores.turns.resume(session, "t")).outcome == "ended"


async def test_turn_of_a_dead_front_end_is_taken_over(stores: Stores) -> None:
    session = await stores.new()
    dead = await stores.begin(session, "t", [1])
    await stores.turns.record(dead, 1, b"one")
    await stores.lapse(session)
    with pytest.raises(OrphanedTurnError):
        await stores.begin(session, "u", [1])
    with pytest.raises(OrphanedTurnError):
        await stores.appends.begin(session, "a")
    resumed = await stores.turns.resume(session, "t")
    assert resumed.outcome == "run"
    with pytest.raises(LeaseLostError):
        await stores.turns.record(dead, 2, b"two")
    with pytest.raises(LeaseLostError):
        await stores.end(dead, [5], (2, b"two"))


async def test_held_lease_is_renewed_and_a_released_one_does_not_come_back(redis: RedisClient) -> None:
    stores, keeper = Stores(redis), LeaseKeeper(redis, 0.03)
    session = await stores.new()
    lease = await stores.begin(session, "t", [1])
    await stores.lapse(session)
    async with keeper.hold(lease):
        async with asyncio.timeout(10):
            while not await redis.exists(Keys(session).lease):
                await asyncio.sleep(0.005)
    await stores.turns.drop(lease)
    async with keeper.hold(lease):
        await asyncio.sleep(0.05)
    assert not await redis.exists(Keys(session).lease)


async def test_frames_can_be_waited_for(stores: Stores) -> None:
    session = await stores.new()
    lease = await stores.begin(session, "t", [1])
    waiting = asyncio.create_task(stores.turns.frames(session, "t", 0, wait_ms=20_000))
    await stores.turns.record(lease, 1, b"one")
    assert await waiting == [b"one"]


async def test_replayed_scripts_change_nothing(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    """redis-py sends a command again when the reply was lost: every script is sent twice here."""
    run_once = stores.redis.register_script

    def run_twice(source: str) -> object:
        script = run_once(source)

        async def twice(**arguments: object) -> object:
            first = await script(**arguments)
            assert await script(**arguments) == first
            return first

        return twice

    monkeypatch.setattr(stores.redis, "register_script", run_twice)
    session = await stores.new()
    await append_all(stores, session, [1, 2])
    lease = await stores.begin(session, "t", [3])
    await stores.turns.record(lease, 1, b"one")
    await stores.end(lease, [4], None)
    resumed = await stores.turns.resume(session, "t")
    assert resumed.lease is not None
    await stores.end(resumed.lease, [4, 5], (2, b"two"))
    await stores.turns.drop(await stores.begin(session, "u", [6]))
    child = await stores.sessions.fork(await stores.sessions.get(session), uuid4().hex)
    assert await stores.log(session) == await stores.log(child.session_id) == [1, 2, 3, 4, 5]
    await stores.sessions.delete(session)
