"""What a turn leaves behind: in its frames, in the log, and on the worker."""

import asyncio
from typing import Any

import grpc
import pytest
from contract import refused, text_of, tokens_of
from scripted_workers import ScriptedWorker, continuation

from tactic.v1 import generation_pb2, types_pb2

REASON = types_pb2.FinishReason


async def read_rest(call: Any) -> list[generation_pb2.GenerationFrame]:
    """Reads to the end, or to the error. (gRPC does not let reads and iteration be mixed.)"""
    frames = []
    while (frame := await call.read()) is not grpc.aio.EOF:
        frames.append(frame)
    return frames


async def read_until(call: Any, tokens: int) -> list[generation_pb2.GenerationFrame]:
    """Reads frames until they hold this many tokens."""
    frames: list[generation_pb2.GenerationFrame] = []
    while len(tokens_of(frames)) < tokens:
        frames.append(await call.read())
    return frames


async def cut_after(call: Any, tokens: int) -> list[generation_pb2.GenerationFrame]:
    frames = await read_until(call, tokens)
    call.cancel()
    return frames


async def idle(front: Any, session: str) -> Any:
    """Waits until no turn runs on the session."""
    async with asyncio.timeout(20):
        while (now := await front.get(session)).active_turn_id:
            await asyncio.sleep(0.005)
    return now


async def test_frames_are_numbered_and_the_log_grows(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        first = await front.answer(session, "Hi", turn_id="one")
        second = await front.answer(session, "More")
        assert [frame.seq for frame in first] == list(range(1, len(first) + 1))
        assert {frame.turn_id for frame in first} == {"one"}
        assert first[0].started.worker_id == "w0"
        assert text_of(first) == system.tokenizer._marking.decode(tokens_of(first))
        assert first[-1].finished.reason == REASON.FINISH_REASON_LENGTH
        usage = second[-1].finished.usage
        log = system.prompt("Hi") + tokens_of(first)
        prompt = log + system.prompt("More", "assistant", 1)
        assert list(worker.requests[1].token_ids) == prompt
        assert tokens_of(second) == continuation(prompt, 8)
        assert (usage.prompt_tokens, usage.completion_tokens) == (len(prompt), 8)
        now = await front.get(session)
        assert (now.token_count, now.turn_count) == (len(prompt) + 8, 2)


async def test_token_that_ends_a_turn_is_in_neither_text_nor_log(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0", end_after=3)) as system:
        front = await system.front()
        session = await front.session()
        frames = await front.answer(session)
        assert len(tokens_of(frames)) == 3
        finished = frames[-1].finished
        assert (finished.reason, finished.usage.completion_tokens) == (REASON.FINISH_REASON_STOP, 4)
        await front.answer(session, "More")
        end = worker.requests[0].stop_token_ids[0]
        assert list(worker.requests[1].token_ids).count(end) == 3
        sampling = types_pb2.SamplingOptions(ignore_eos=True)
        assert len(tokens_of(await front.answer(session, "On", sampling=sampling))) == 8


async def test_stop_string_ends_the_turn_and_frees_the_worker(make_system: Any) -> None:
    gate = asyncio.Semaphore(12)
    async with make_system(worker := ScriptedWorker("w0", gate=gate)) as system:
        front = await system.front()
        whole = system.tokenizer._marking.decode(continuation(system.prompt("Hi"), 12))
        stop = whole[5:8]
        sampling = types_pb2.SamplingOptions(stop=["never", stop])
        session = await front.session()
        frames = await front.answer(session, max_tokens=1000, sampling=sampling)
        assert text_of(frames) == whole[: whole.index(stop)]
        assert (frames[-1].finished.reason, frames[-1].finished.stop) == (REASON.FINISH_REASON_STOP, stop)
        async with asyncio.timeout(20):
            await worker.cancelled.wait()
        log = len(system.prompt("Hi")) + len(tokens_of(frames))
        assert (await front.get(session)).token_count == log


async def test_logprobs_come_with_their_tokens(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        sampling = types_pb2.SamplingOptions(logprobs=0, stop=["zzzz"])
        frames = await front.answer(await front.session(), sampling=sampling)
        for frame in frames:
            assert [p.token_id for p in frame.delta.logprobs] == list(frame.delta.token_ids)


async def test_generation_ends_at_the_context_limit(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        front = await system.front()
        session = await front.session()
        await front.append(session, b"x " * 2000, prefill=False)
        frames = await front.answer(session, max_tokens=10_000)
        usage = frames[-1].finished.usage
        assert frames[-1].finished.reason == REASON.FINISH_REASON_LENGTH
        assert usage.prompt_tokens + usage.completion_tokens == 4096


async def test_max_tokens_has_a_default(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        front = await system.front(default_max_tokens=5)
        request = generation_pb2.CompleteRequest(text="x")
        frames = [frame async for frame in front.completions.Complete(request)]
        assert len(tokens_of(frames)) == worker.requests[0].sampling.max_tokens == 5


async def test_cancelled_turn_keeps_what_was_sent_and_can_go_on(make_system: Any) -> None:
    gate = asyncio.Semaphore(4)
    async with make_system(worker := ScriptedWorker("w0", gate=gate)) as system:
        front = await system.front()
        session = await front.session()
        seen = await cut_after(front.chat(session, turn_id="t"), 4)
        async with asyncio.timeout(20):
            await worker.cancelled.wait()
        now = await idle(front, session)
        prompt = system.prompt("Hi")
        assert (now.token_count, now.turn_count) == (len(prompt) + 4, 1)
        worker.gate = None
        rest = await front.answer(session, turn_id="t", resume_after_seq=seen[-1].seq)
        assert [frame.seq for frame in seen + rest] == list(range(1, len(seen + rest) + 1))
        assert tokens_of(seen + rest) == continuation(prompt, 8)
        assert rest[-1].finished.usage.completion_tokens == 8
        now = await front.get(session)
        assert (now.token_count, now.turn_count) == (len(prompt) + 8, 1)


async def test_turn_cancelled_before_its_first_token_changes_nothing(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0", gate=asyncio.Semaphore(0))) as system:
        front = await system.front()
        session = await front.session()
        call = front.chat(session, turn_id="t")
        assert (await call.read()).HasField("started")
        call.cancel()
        now = await idle(front, session)
        assert (now.token_count, now.turn_count) == (0, 0)
        worker.gate = None
        assert tokens_of(await front.answer(session)) == continuation(system.prompt("Hi"), 8)
        # The session has gone on, so the cancelled turn cannot.
        ended = await front.answer(session, turn_id="t", resume_after_seq=1)
        assert [frame.finished.reason for frame in ended] == [REASON.FINISH_REASON_CANCELLED]


async def test_deadline_cuts_a_turn_short(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0", gate=asyncio.Semaphore(2))) as system:
        front = await system.front()
        session = await front.session()
        refusal = await refused(read_rest(front.chat(session, timeout=1.5)))
        assert refusal.code is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(20):
            await worker.cancelled.wait()
        assert (await idle(front, session)).token_count == len(system.prompt("Hi")) + 2


async def test_finished_turn_is_replayed_not_repeated(make_system: Any) -> None:
    async with make_system(worker := ScriptedWorker("w0")) as system:
        one, other = await system.front(), await system.front()
        session = await one.session()
        frames = await one.answer(session, turn_id="t")
        assert await other.answer(session, turn_id="t", resume_after_seq=1) == frames[1:]
        # The same request again, as after a connection that broke before its first frame.
        assert await other.answer(session, turn_id="t") == frames
        assert await other.answer(session, turn_id="t", resume_after_seq=frames[-1].seq) == []
        assert len(worker.requests) == 1


async def test_turn_is_followed_from_another_front_end(make_system: Any) -> None:
    gate = asyncio.Semaphore(2)
    async with make_system(ScriptedWorker("w0", gate=gate)) as system:
        one, other = await system.front(), await system.front()
        session = await one.session()
        running = one.chat(session, turn_id="t")
        seen = await read_until(running, 2)
        following = asyncio.create_task(other.answer(session, turn_id="t", resume_after_seq=0))
        for _ in range(6):
            gate.release()
        frames = seen + await read_rest(running)
        assert await following == frames


async def test_follower_takes_over_when_the_first_client_leaves(make_system: Any) -> None:
    gate = asyncio.Semaphore(2)
    async with make_system(ScriptedWorker("w0", gate=gate)) as system:
        one, other = await system.front(), await system.front()
        session = await one.session()
        running = one.chat(session, turn_id="t")
        seen = await read_until(running, 2)
        follower = other.chat(session, turn_id="t", resume_after_seq=0)
        assert await read_until(follower, 2) == seen
        running.cancel()
        for _ in range(20):
            gate.release()
        rest = await read_rest(follower)
        assert tokens_of(seen + rest) == continuation(system.prompt("Hi"), 8)


async def test_deleting_the_session_ends_its_turn(make_system: Any) -> None:
    gate = asyncio.Semaphore(2)
    async with make_system(worker := ScriptedWorker("w0", gate=gate)) as system:
        front = await system.front()
        session = await front.session()
        running = front.chat(session)
        await read_until(running, 2)
        await front.delete(session)
        gate.release()
        refusal = await refused(read_rest(running))
        assert refusal.reason == "SESSION_NOT_FOUND"
        async with asyncio.timeout(20):
            await worker.cancelled.wait()


async def test_stopping_front_end_lets_short_turns_finish(make_system: Any) -> None:
    gate = asyncio.Semaphore(2)
    async with make_system(ScriptedWorker("w0", gate=gate)) as system:
        front = await system.front(shutdown_grace_s=30)
        session = await front.session()
        running = front.chat(session)
        seen = await read_until(running, 2)
        stopping = asyncio.create_task(front.front_end._drain.close(30))
        await asyncio.sleep(0)
        assert (await refused(read_rest(front.chat(session)))).reason == "SHUTTING_DOWN"
        for _ in range(6):
            gate.release()
        frames = seen + await read_rest(running)
        assert frames[-1].HasField("finished")
        await stopping


async def test_stopping_front_end_leaves_long_turns_to_others(make_system: Any) -> None:
    gate = asyncio.Semaphore(2)
    async with make_system(worker := ScriptedWorker("w0", gate=gate)) as system:
        one, other = await system.front(), await system.front()
        session = await one.session()
        running = one.chat(session, turn_id="t")
        seen = await read_until(running, 2)
        await one.front_end._drain.close(0.01)
        refusal = await refused(read_rest(running))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert refusal.retry_s is not None
        worker.gate = None
        rest = await other.answer(session, turn_id="t", resume_after_seq=seen[-1].seq)
        assert tokens_of(seen + rest) == continuation(system.prompt("Hi"), 8)


@pytest.mark.parametrize("with_session", [True, False])
async def test_worker_that_refuses_changes_nothing(make_system: Any, with_session: bool) -> None:
    worker = ScriptedWorker("w0", refuse=grpc.StatusCode.INVALID_ARGUMENT)
    async with make_system(worker) as system:
        front = await system.front()
        session = await front.session() if with_session else ""
        refusal = await refused(read_rest(front.chat(session)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "WORKER_REFUSED")
        worker.refuse = None
        if with_session:
            assert (await front.get(session)).token_count == 0
        assert len(tokens_of(await front.answer(session))) == 8
