"""Bad input gets a specific status that names the field; nothing changes, and the session stays usable."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from contract import Api, Refusal, chunk, refused, tokens_of

from tactic.v1 import admin_pb2, generation_pb2, session_pb2, types_pb2

Code = grpc.StatusCode
CONTEXT_LENGTH = 32768
TEXT = "It was a bright cold day in April."


@pytest.fixture
async def session(api: Api) -> AsyncIterator[str]:
    """A session that must be the same after the test, and usable."""
    session_id = await api.session(TEXT)
    before = await api.get(session_id)
    yield session_id
    after = await api.get(session_id)
    before.worker_id = after.worker_id
    assert after == before
    frames = await api.frames(session_id)
    assert len(tokens_of(frames)) == 8
    assert frames[-1].HasField("finished")


async def drained(call: Any) -> None:
    async for _ in call:
        raise AssertionError("a frame came")


@pytest.mark.parametrize(
    ("method", "request_type"),
    [
        ("GetSession", session_pb2.GetSessionRequest),
        ("DeleteSession", session_pb2.DeleteSessionRequest),
        ("ForkSession", session_pb2.ForkSessionRequest),
    ],
)
async def test_unknown_session(api: Api, method: str, request_type: Any) -> None:
    refusal = await refused(getattr(api.sessions, method)(request_type(session_id="nobody")))
    assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "SESSION_NOT_FOUND")
    assert list(refusal.fields) == ["session_id"]


async def test_unknown_session_of_a_turn_and_an_append(api: Api) -> None:
    calls = {
        "session_id": drained(api.chat("nobody")),
        "header.session_id": api.append("nobody", chunk(b"x")),
    }
    for field, call in calls.items():
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "SESSION_NOT_FOUND")
        assert list(refusal.fields) == [field]


async def test_taken_session_name(api: Api, session: str) -> None:
    create = session_pb2.CreateSessionRequest(session_id=session)
    fork = session_pb2.ForkSessionRequest(session_id=session, new_session_id=session)
    calls = {
        "session_id": api.sessions.CreateSession(create),
        "new_session_id": api.sessions.ForkSession(fork),
    }
    for field, call in calls.items():
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (Code.ALREADY_EXISTS, "SESSION_EXISTS")
        assert list(refusal.fields) == [field]


@pytest.mark.parametrize("name", ["a b", "ü", "x" * 65, "../etc", "a\n"])
async def test_bad_session_name(api: Api, name: str) -> None:
    refusal = await refused(api.sessions.CreateSession(session_pb2.CreateSessionRequest(session_id=name)))
    assert refusal.code is Code.INVALID_ARGUMENT
    assert "1 to 64 characters" in refusal.fields["session_id"]


async def test_wrong_offset(api: Api, session: str) -> None:
    refusal = await refused(api.append(session, chunk(b"more", offset=5)))
    assert (refusal.code, refusal.reason) == (Code.OUT_OF_RANGE, "WRONG_OFFSET")
    assert refusal.metadata == {"next_offset": "0"}
    assert "0 bytes are durable" in refusal.fields["chunk.offset"]


async def test_wrong_checksum(api: Api, session: str) -> None:
    refusal = await refused(api.append(session, chunk(b"more", crc32=1)))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "CHECKSUM_MISMATCH")
    assert "send the chunk again" in refusal.fields["chunk.crc32"]


@pytest.mark.parametrize(("data", "position"), [(b"abc\xff", 3), (b"\xed\xa0\x80", 0), (b"cut \xf0\x9f", 4)])
async def test_invalid_utf8_in_a_context(api: Api, session: str, data: bytes, position: int) -> None:
    refusal = await refused(api.append(session, chunk(data, last=True)))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "INVALID_UTF8")
    assert refusal.metadata == {"position": str(position)}
    assert f"byte {position}" in refusal.fields["chunk.data"]


async def test_invalid_utf8_in_a_message(api: Api, session: str) -> None:
    request = generation_pb2.ChatCompletionRequest(session_id=session)
    # messages { role: "user" content: <a lone continuation byte> }
    raw = request.SerializeToString() + b"\x12\x09\x0a\x04user\x12\x01\x80"
    call = api.channel.unary_stream("/tactic.v1.ChatService/ChatCompletion")
    refusal = await refused(drained(call(raw)))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert "UTF-8" in refusal.fields["message"]


async def test_chunk_over_its_limit(api: Api, session: str) -> None:
    refusal = await refused(api.append(session, chunk(b"x" * (2**20 + 1))))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "CHUNK_TOO_LARGE")
    assert "1048576" in refusal.fields["chunk.data"]


async def test_message_over_the_size_limit(api: Api) -> None:
    request = generation_pb2.CompleteRequest(text="x" * (64 * 2**20))
    refusal = await refused(drained(api.completions.Complete(request)))
    assert (refusal.code, refusal.reason) == (Code.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")
    assert refusal.metadata["limit"] == str(64 * 2**20)
    assert "at most 67108864" in refusal.fields["message"]


async def test_stream_without_header(api: Api) -> None:
    for requests in ([], [session_pb2.AppendContextRequest(chunk=chunk(b"x"))]):
        refusal = await refused(api.sessions.AppendContext(iter(requests)))
        assert refusal.code is Code.INVALID_ARGUMENT
        assert list(refusal.fields) == ["header"]


async def test_empty_context(api: Api, session: str) -> None:
    refusal = await refused(api.append(session, chunk(b"", last=True)))
    assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "EMPTY_TEXT")
    assert list(refusal.fields) == ["chunk.data"]


async def test_context_over_the_limit(api: Api, session: str) -> None:
    long = "word " * CONTEXT_LENGTH
    refusals = [
        await refused(api.append(session, chunk(long.encode(), last=True))),
        await refused(drained(api.chat(session, long))),
        await refused(drained(api.completions.Complete(generation_pb2.CompleteRequest(text=long)))),
    ]
    for refusal, field in zip(refusals, ["chunk.data", "messages", "text"], strict=True):
        assert (refusal.code, refusal.reason) == (Code.INVALID_ARGUMENT, "CONTEXT_TOO_LONG")
        assert refusal.metadata["limit"] == str(CONTEXT_LENGTH - 1)
        assert int(refusal.metadata["size"]) > CONTEXT_LENGTH
        assert str(CONTEXT_LENGTH - 1) in refusal.fields[field]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "messages"),
        ([("user", "")], "messages[0].content"),
        ([("user", "x"), ("robot", "y")], "messages[1].role"),
    ],
)
async def test_bad_messages(api: Api, session: str, messages: list[tuple[str, str]], field: str) -> None:
    built = [generation_pb2.Message(role=role, content=content) for role, content in messages]
    refusal = await refused(drained(api.chat(session, messages=built)))
    assert refusal.code is Code.INVALID_ARGUMENT
    assert list(refusal.fields) == [field]


@pytest.mark.parametrize(
    "request_",
    [
        generation_pb2.CompleteRequest(),
        generation_pb2.CompleteRequest(text=""),
        generation_pb2.CompleteRequest(tokens=generation_pb2.TokenIds()),
    ],
)
async def test_empty_prompt(api: Api, request_: generation_pb2.CompleteRequest) -> None:
    refusal = await refused(drained(api.completions.Complete(request_)))
    assert refusal.code is Code.INVALID_ARGUMENT
    assert "must not be empty" in refusal.fields["prompt"]


async def test_token_beyond_the_vocabulary(api: Api) -> None:
    tokens = generation_pb2.TokenIds(ids=[1, 10**6])
    refusal = await refused(drained(api.completions.Complete(generation_pb2.CompleteRequest(tokens=tokens))))
    assert refusal.code is Code.INVALID_ARGUMENT
    assert "below 259" in refusal.fields["tokens.ids[1]"]


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.0000001, float("nan"), float("inf")])
async def test_threshold_outside_its_interval(api: Api, session: str, threshold: float) -> None:
    tactic = types_pb2.TacticOptions(threshold=threshold)
    refusal = await refused(drained(api.chat(session, tactic=tactic)))
    assert refusal.code is Code.INVALID_ARGUMENT
    assert "(0, 1]" in refusal.fields["tactic.threshold"]


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"temperature": -1}, "sampling.temperature"),
        ({"temperature": float("nan")}, "sampling.temperature"),
        ({"top_p": 0}, "sampling.top_p"),
        ({"top_p": 1.5}, "sampling.top_p"),
        ({"max_tokens": 0}, "sampling.max_tokens"),
        ({"logprobs": 21}, "sampling.logprobs"),
        ({"seed": 2**63}, "sampling.seed"),
        ({"stop": [""]}, "sampling.stop[0]"),
        ({"stop": ["x"] * 17}, "sampling.stop"),
    ],
)
async def test_bad_sampling(api: Api, session: str, sampling: dict[str, Any], field: str) -> None:
    options = types_pb2.SamplingOptions(**sampling)
    refusal = await refused(drained(api.chat(session, sampling=options)))
    assert refusal.code is Code.INVALID_ARGUMENT
    assert list(refusal.fields) == [field]


async def test_unknown_estimator(api: Api, session: str) -> None:
    tactic = types_pb2.TacticOptions(estimator="guess")
    refusal = await refused(drained(api.chat(session, tactic=tactic)))
    assert "guarded, fit, centroid, exact" in refusal.fields["tactic.estimator"]


async def test_unknown_model(api: Api, session: str) -> None:
    create = session_pb2.CreateSessionRequest(model="gpt")
    complete = generation_pb2.CompleteRequest(model="gpt", text="x")
    for call in (
        api.sessions.CreateSession(create),
        drained(api.chat(session, model="gpt")),
        drained(api.chat("", model="gpt")),
        drained(api.completions.Complete(complete)),
    ):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "MODEL_NOT_FOUND")
        assert list(refusal.fields) == ["model"]


async def test_two_turns_at_once(api: Api) -> None:
    session = await api.session(TEXT)
    sampling = types_pb2.SamplingOptions(temperature=0, max_tokens=2000, ignore_eos=True)
    first = api.chat(session, sampling=sampling, turn_id="first")
    assert (await first.read()).HasField("started")
    calls = {
        "session_id": drained(api.chat(session)),
        "header.session_id": api.append(session, chunk(b"x", last=True)),
    }
    for field, call in calls.items():
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (Code.ABORTED, "SESSION_BUSY")
        assert refusal.metadata == {"kind": "turn", "id": "first"}
        assert "'first'" in refusal.fields[field]
    first.cancel()
    await settled(api, session)
    assert len(tokens_of(await api.frames(session))) == 8


async def settled(api: Api, session: str) -> session_pb2.Session:
    """Waits until no turn runs on a session."""
    async with asyncio.timeout(60):
        while (now := await api.get(session)).active_turn_id:
            await asyncio.sleep(0.01)
    return now


async def test_turn_while_an_append_is_open(api: Api) -> None:
    session = await api.session()
    await api.append(session, chunk(b"one two "), append_id="a")
    for call in (drained(api.chat(session)), api.append(session, chunk(b"x", last=True), append_id="b")):
        refusal = await refused(call)
        assert (refusal.code, refusal.reason) == (Code.FAILED_PRECONDITION, "APPEND_OPEN")
        assert refusal.metadata == {"append_id": "a", "next_offset": "8"}
    await api.append(session, chunk(b"", offset=8, last=True), append_id="a")
    assert len(tokens_of(await api.frames(session))) == 8


async def test_deadline_already_passed(api: Api, session: str) -> None:
    refusal = await refused(drained(api.chat(session, timeout=0)))
    assert refusal.code is Code.DEADLINE_EXCEEDED
    refusal = await refused(
        api.sessions.DeleteSession(session_pb2.DeleteSessionRequest(session_id=session), timeout=0)
    )
    assert refusal.code is Code.DEADLINE_EXCEEDED


async def test_resuming_what_never_was(api: Api, session: str) -> None:
    refusal = await refused(drained(api.chat(session, turn_id="t", resume_after_seq=0)))
    assert (refusal.code, refusal.reason) == (Code.NOT_FOUND, "TURN_NOT_FOUND")
    assert list(refusal.fields) == ["turn_id"]
    refusal = await refused(drained(api.chat("", resume_after_seq=0)))
    assert set(refusal.fields) == {"resume_after_seq", "turn_id"}


async def test_one_turn_name_for_two_requests(api: Api) -> None:
    session = await api.session(TEXT)
    await api.frames(session, "one", turn_id="t")
    refusal = await refused(drained(api.chat(session, "two", turn_id="t")))
    assert (refusal.code, refusal.reason) == (Code.ALREADY_EXISTS, "TURN_EXISTS")


async def test_all_faults_of_a_request_are_named_at_once(api: Api, session: str) -> None:
    sampling = types_pb2.SamplingOptions(temperature=-1, top_p=2)
    refusal: Refusal = await refused(drained(api.chat(session, messages=[], sampling=sampling)))
    assert set(refusal.fields) == {"messages", "sampling.temperature", "sampling.top_p"}


async def test_page_over_its_limit(api: Api) -> None:
    refusal = await refused(api.sessions.ListSessions(session_pb2.ListSessionsRequest(page_size=1001)))
    assert "at most 1000" in refusal.fields["page_size"]


async def test_draining_an_unknown_worker(api: Api) -> None:
    refusal = await refused(api.admin.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id="nobody")))
    assert (refusal.code, list(refusal.fields)) == (Code.NOT_FOUND, ["worker_id"])
