import asyncio
import inspect
import itertools
from typing import Any

import grpc
import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from tactic.service import client as package
from tactic.service.client import (
    AlreadyExistsError,
    Answer,
    AttentionStats,
    ConflictError,
    DeadlineExceededError,
    FieldViolation,
    FinishReason,
    InvalidRequestError,
    NotFoundError,
    ResourceExhaustedError,
    TacticClient,
    TextDelta,
    Timeouts,
    TurnFinished,
    TurnStarted,
    UnavailableError,
    Usage,
)
from tactic.service.client import _client as client_module
from tactic.service.client._errors import from_rpc_error

RETRYABLE = (code_pb2.UNAVAILABLE, "going away", error_details_pb2.ErrorInfo(reason="DRAINING"))
TEXT = ("no gaps, nothing twice: é€😀 " * 100_000).encode()


def test_exports_are_what_is_public() -> None:
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(package.__all__)
    assert package.__all__ == sorted(package.__all__)


def test_an_answer_tells_what_the_turn_took_once_it_has_finished() -> None:
    answer = Answer()
    for name in ("attention", "usage"):
        with pytest.raises(ValueError, match="has not finished"):
            getattr(answer, name)
    stats, usage = AttentionStats(decode_steps=3), Usage(prompt_tokens=5)
    answer.add(TurnFinished(FinishReason.FINISH_REASON_STOP, "", usage, stats))
    assert (answer.attention, answer.usage) == (stats, usage)


async def test_a_turn_goes_on_where_its_connection_broke(rig: Any) -> None:
    rig.flaky.failures, rig.flaky.pass_first = [RETRYABLE, RETRYABLE], 3
    answer = await Answer.collect(rig.client.chat("hello", session_id="s"))
    assert answer.text == "23456789"
    assert answer.token_ids == list(range(2, 10))
    assert [call.resume_after_seq for call in rig.flaky.calls] == [0, 3, 6]
    assert len({call.turn_id for call in rig.flaky.calls}) == 1
    assert all(call.turn_id for call in rig.flaky.calls)


async def test_a_turn_that_had_no_frame_yet_is_repeated_under_its_name(rig: Any) -> None:
    rig.flaky.failures = [RETRYABLE]
    answer = await Answer.collect(rig.client.chat("hello", session_id="s", turn_id="t"))
    assert answer.text == "23456789"
    assert [call.HasField("resume_after_seq") for call in rig.flaky.calls] == [False, False]


async def test_a_turn_without_session_is_not_resumed(rig: Any) -> None:
    rig.flaky.failures, rig.flaky.pass_first = [RETRYABLE], 3
    texts = []
    with pytest.raises(UnavailableError, match="going away"):
        await Answer.collect(rig.client.complete("hello"), texts.append)
    assert texts == ["2", "3"]
    assert len(rig.flaky.calls) == 1


async def test_other_failures_are_not_repeated(rig: Any) -> None:
    rig.flaky.failures = [(code_pb2.ABORTED, "turn t is running")]
    with pytest.raises(ConflictError, match="turn t is running"):
        await Answer.collect(rig.client.chat("hello", session_id="s"))
    assert len(rig.flaky.calls) == 1


async def test_events_in_order(rig: Any) -> None:
    events = [event async for event in rig.client.chat("hello", session_id="s")]
    assert isinstance(events[0], TurnStarted)
    assert isinstance(events[-1], TurnFinished)
    assert all(isinstance(event, TextDelta) for event in events[1:-1])


@pytest.mark.parametrize("pass_first", [0, 1, 3])
async def test_an_append_goes_on_where_the_server_stands(rig: Any, pass_first: int) -> None:
    rig.flaky.failures, rig.flaky.pass_first = [RETRYABLE] * 3, pass_first
    progress = []
    response = await rig.client.append_context("s", TEXT.decode(), on_progress=progress.append)
    assert rig.flaky.received == TEXT
    assert response.finished
    assert [each.bytes_accepted for each in progress][-1] == len(TEXT)
    assert all(each.total_bytes == len(TEXT) for each in progress)
    assert len(progress) == -(-len(TEXT) // 2**20)
    assert len({call.append_id for call in rig.flaky.calls}) == 1


async def test_a_lost_last_acknowledgement_is_asked_for_again(rig: Any) -> None:
    rig.flaky.failures, rig.flaky.pass_first, rig.flaky.lose_answer = [RETRYABLE], 10**6, True
    response = await rig.client.append_context("s", b"short")
    assert (rig.flaky.received, response.finished) == (b"short", True)
    assert len(rig.flaky.calls) == 2


async def test_another_client_takes_an_append_over(rig: Any) -> None:
    rig.flaky.append_id, rig.flaky.received = "a", TEXT[:1_500_000]
    response = await rig.client.append_context("s", TEXT, append_id="a")
    assert rig.flaky.received == TEXT
    assert response.bytes_accepted == len(TEXT)


async def test_text_in_pieces_of_any_size(rig: Any) -> None:
    sizes = itertools.cycle([1, 70_000, 3_000_000, 17])
    pieces, at = [], 0
    while at < len(TEXT):
        size = next(sizes)
        pieces.append(TEXT[at : at + size])
        at += size
    await rig.client.append_context("s", iter(pieces))
    assert rig.flaky.received == TEXT


async def test_an_empty_text_is_closed_at_once(rig: Any) -> None:
    response = await rig.client.append_context("s", "")
    assert response.finished
    assert rig.flaky.received == b""


@pytest.mark.parametrize("lose_answer", [False, True])
async def test_create_and_delete_are_repeated_once_done(rig: Any, lose_answer: bool) -> None:
    rig.flaky.lose_answer = lose_answer
    rig.flaky.failures = [RETRYABLE]
    session = await rig.client.create_session()
    assert rig.flaky.names == {session.session_id}
    rig.flaky.failures = [RETRYABLE]
    await rig.client.delete_session(session.session_id)
    assert rig.flaky.names == set()


async def test_create_and_delete_tell_what_was_there_before(rig: Any) -> None:
    await rig.client.create_session("a")
    with pytest.raises(AlreadyExistsError):
        await rig.client.create_session("a")
    with pytest.raises(NotFoundError):
        await rig.client.delete_session("b")


async def test_sessions_are_listed_over_pages(rig: Any) -> None:
    assert [session.session_id async for session in rig.client.list_sessions()] == list("01234")


async def test_details_of_a_refusal(rig: Any) -> None:
    rig.flaky.failures = [
        (
            code_pb2.INVALID_ARGUMENT,
            "bad request",
            error_details_pb2.BadRequest(
                field_violations=[{"field": "tactic.threshold", "description": "must be in (0, 1]"}]
            ),
            error_details_pb2.ErrorInfo(reason="BAD_THRESHOLD", metadata={"limit": "1"}),
        )
    ]
    with pytest.raises(InvalidRequestError) as caught:
        await Answer.collect(rig.client.chat("hello"))
    error = caught.value
    assert str(error) == "bad request; tactic.threshold: must be in (0, 1]"
    assert error.violations == (FieldViolation("tactic.threshold", "must be in (0, 1]"),)
    assert (error.reason, error.metadata, error.retry_after_s) == ("BAD_THRESHOLD", {"limit": "1"}, None)


async def test_no_front_end_is_said_so() -> None:
    async with TacticClient("127.0.0.1:1", Timeouts(reconnect=0)) as client:
        with pytest.raises(UnavailableError, match=r"no front end answers at 127\.0\.0\.1:1"):
            await client.get_session("s")
        assert not await client.is_serving()


@pytest.mark.parametrize("timeouts", [Timeouts(turn=0.3), Timeouts(turn=0.0), Timeouts(silence=0.3)])
async def test_a_turn_that_stalls_is_given_up(rig: Any, timeouts: Timeouts) -> None:
    rig.flaky.stall_after = 3
    async with TacticClient(rig.address, timeouts) as client:
        with pytest.raises(DeadlineExceededError):
            await Answer.collect(client.chat("hello", session_id="s"))


async def test_a_turn_goes_on_elsewhere_when_its_host_vanishes(
    rig: Any, proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = [(name, value // 20) for name, value in client_module.KEEPALIVE]
    monkeypatch.setattr(client_module, "KEEPALIVE", times)
    rig.flaky.stall_after = 3
    async with TacticClient(proxy.address) as client:
        answer = Answer()
        async with asyncio.timeout(20):
            async for event in client.chat("hello", session_id="s"):
                answer.add(event)
                if answer.text == "23":
                    proxy.vanish()
                    rig.flaky.stall_after = 10
    assert answer.text == "23456789"
    assert [call.resume_after_seq for call in rig.flaky.calls] == [0, 3]


async def test_a_status_at_odds_with_its_details_is_told_without_them() -> None:
    trailers = grpc.aio.Metadata(("grpc-status-details-bin", status_pb2.Status(code=3).SerializeToString()))
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.aio.Metadata(), trailers, details="too much metadata"
    )
    told = from_rpc_error(error, "host:1")
    assert isinstance(told, ResourceExhaustedError)
    assert str(told) == "too much metadata"


async def test_a_write_to_a_stream_that_has_ended_counts_as_a_broken_connection() -> None:
    metadata = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, metadata, metadata, details="Internal error from Core"
    )
    assert isinstance(from_rpc_error(error, "host:1"), UnavailableError)
    other = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, metadata, metadata, details="a bug")
    assert not isinstance(from_rpc_error(other, "host:1"), UnavailableError)
