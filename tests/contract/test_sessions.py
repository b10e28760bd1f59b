"""SessionService on a running system."""

from uuid import uuid4

from contract import Api, chunk, tokens_of

from tactic.v1 import session_pb2

TEXT = "Call me Ishmael. Some years ago, never mind how long precisely … " * 8


async def test_session_has_what_it_was_created_with(api: Api) -> None:
    name = uuid4().hex
    request = session_pb2.CreateSessionRequest(session_id=name, labels={"book": "Moby-Dick 🐋"})
    created = await api.sessions.CreateSession(request)
    assert (created.session_id, created.labels["book"]) == (name, "Moby-Dick 🐋")
    assert (created.token_count, created.turn_count, created.active_turn_id) == (0, 0, "")
    assert created.model
    assert created.create_time.seconds > 0
    assert await api.get(name) == created


async def test_context_does_not_depend_on_its_chunks(api: Api) -> None:
    whole, cut = await api.session(), await api.session()
    data = TEXT.encode()
    await api.append(whole, chunk(data, last=True))
    pieces = [chunk(data[i : i + 7], i, last=i + 7 >= len(data)) for i in range(0, len(data), 7)]
    response = await api.append(cut, *pieces)
    assert response.finished
    assert response.bytes_accepted == len(data)
    assert response.session.token_count == (await api.get(whole)).token_count
    one, other = await api.frames(whole), await api.frames(cut)
    assert tokens_of(one) == tokens_of(other)


async def test_fork_answers_as_its_parent(api: Api) -> None:
    parent = await api.session(TEXT)
    await api.frames(parent, "Who?")
    fork = await api.sessions.ForkSession(session_pb2.ForkSessionRequest(session_id=parent))
    before = await api.get(parent)
    assert (fork.parent_session_id, fork.token_count) == (parent, before.token_count)
    answer = await api.frames(fork.session_id, "Where?")
    assert await api.get(parent) == before
    assert tokens_of(await api.frames(parent, "Where?")) == tokens_of(answer)


async def test_listing_pages(api: Api) -> None:
    prefix = uuid4().hex
    names = [f"{prefix}-{i}" for i in range(5)]
    for name in names:
        await api.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=name))
    seen: list[str] = []
    request = session_pb2.ListSessionsRequest(page_size=2, page_token=prefix)
    while len(seen) < 5:
        page = await api.sessions.ListSessions(request)
        seen += [session.session_id for session in page.sessions]
        request.page_token = page.next_page_token
    assert seen[:5] == names


async def test_deleted_session_frees_its_name(api: Api) -> None:
    name = await api.session(TEXT)
    await api.frames(name)
    await api.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=name))
    await api.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=name))
    assert (await api.get(name)).token_count == 0
    assert len(tokens_of(await api.frames(name))) == 8
