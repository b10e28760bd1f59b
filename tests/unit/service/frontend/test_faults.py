"""Workers and front ends that die: no acknowledged token is lost, repeated or made up."""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract import refused, tokens_of
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scripted_workers import ScriptedWorker, continuation

from tactic.service.client import Answer, TacticClient
from tactic.service.launch.redis_server import RedisServer
from tactic.service.sessions import connect
from tactic.service.sessions.keys import Keys
from tactic.v1 import admin_pb2, generation_pb2, generation_pb2_grpc, types_pb2

READY, DEAD = admin_pb2.WORKER_STATE_READY, admin_pb2.WORKER_STATE_DEAD


async def drained(call: Any) -> None:
    async for _ in call:
        pass


@pytest.mark.parametrize("die_after", [0, 1, 5, 7])
async def test_turn_goes_on_at_another_worker(make_system: Any, die_after: int) -> None:
    workers = [ScriptedWorker(f"w{i}", die_after=die_after if i == 0 else None) for i in range(2)]
    async with make_system(*workers) as system:
        front = await system.front()
        session = await front.session()
        frames = await front.answer(session)
        assert [frame.seq for frame in frames] == list(range(1, len(frames) + 1))
        assert tokens_of(frames) == continuation(system.prompt("Hi"), 8)
        assert frames[-1].finished.usage.completion_tokens == 8
        if workers[0].requests:
            assert (await front.get(session)).worker_id == "w1"


async def test_request_that_kills_its_workers_is_given_up(make_system: Any) -> None:
    workers = [ScriptedWorker(f"w{i}", die_after=0) for i in range(4)]
    async with make_system(*workers) as system:
        front = await system.front()
        session = await front.session()
        refusal = await refused(drained(front.chat(session)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.INTERNAL, "WORKERS_LOST")
        assert len([worker for worker in workers if worker.requests]) == 3
        now = await front.get(session)
        assert (now.token_count, now.active_turn_id) == (0, "")


@pytest.mark.parametrize(("end_after", "tokens"), [(None, 8), (3, 3)])
async def test_last_word_of_a_worker_is_not_needed(
    make_system: Any, end_after: int | None, tokens: int
) -> None:
    worker = ScriptedWorker("w0", end_after=end_after, dies_before_its_last_word=True)
    async with make_system(worker) as system:
        front = await system.front()
        frames = await front.answer(await front.session())
        assert tokens_of(frames) == continuation(system.prompt("Hi"), 8)[:tokens]
        reason = types_pb2.FINISH_REASON_STOP if end_after else types_pb2.FINISH_REASON_LENGTH
        assert frames[-1].finished.reason == reason
        assert len(worker.requests) == 1


async def test_turn_waits_for_its_only_worker_to_come_back(make_system: Any) -> None:
    worker = ScriptedWorker("w0", die_after=3)
    async with make_system(worker) as system:
        front = await system.front()
        running = asyncio.create_task(front.answer(await front.session()))
        async with asyncio.timeout(20):
            while worker.die_after is not None:
                await asyncio.sleep(0.005)
        worker.state = DEAD
        await system.supervisor.publish()
        worker.state = READY
        await system.supervisor.publish()
        assert tokens_of(await running) == continuation(system.prompt("Hi"), 8)


async def test_turn_leaves_a_worker_that_hangs_when_the_supervisor_calls_it_dead(make_system: Any) -> None:
    hung, healthy = ScriptedWorker("w0", gate=asyncio.Semaphore(2)), ScriptedWorker("w1")
    async with make_system(hung, healthy) as system:
        healthy.state = DEAD
        front = await system.front()
        session = await front.session()
        running = front.chat(session)
        frames = [await running.read() for _ in range(2)]
        healthy.state, hung.state = READY, DEAD
        await system.supervisor.publish()
        while (frame := await running.read()) is not grpc.aio.EOF:
            frames.append(frame)
        assert tokens_of(frames) == continuation(system.prompt("Hi"), 8)


async def test_turn_without_a_worker_in_time_can_be_resumed(make_system: Any) -> None:
    worker = ScriptedWorker("w0", die_after=3)
    async with make_system(worker) as system:
        front = await system.front(worker_wait_s=0.05)
        session = await front.session()
        call, seen = front.chat(session, turn_id="t"), []
        while len(tokens_of(seen)) < 3:
            seen.append(await call.read())
        assert (await refused(call.read())).code is grpc.StatusCode.UNAVAILABLE
        prompt = system.prompt("Hi")
        assert (await front.get(session)).token_count == len(prompt) + 3
        await system.supervisor.publish()
        await front.ready()
        rest = await front.answer(session, turn_id="t", resume_after_seq=seen[-1].seq)
        assert tokens_of(seen + rest) == continuation(prompt, 8)


async def test_client_comes_back_for_a_turn_that_failed_before_its_first_token(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0", die_after=0)) as system:
        front = await system.front(worker_wait_s=0.05)
        session = await front.session()

        async def publish_now_and_then() -> None:
            while True:
                await asyncio.sleep(0.2)
                await system.supervisor.publish()

        publishing = asyncio.create_task(publish_now_and_then())
        try:
            async with TacticClient(front.address) as client:
                sampling = types_pb2.SamplingOptions(max_tokens=8)
                answer = await Answer.collect(client.chat("Hi", session_id=session, sampling=sampling))
        finally:
            publishing.cancel()
        assert answer.token_ids == continuation(system.prompt("Hi"), 8)
        assert (await front.get(session)).turn_count == 1


async def test_no_worker_is_unavailable_at_once(make_system: Any) -> None:
    worker = ScriptedWorker("w0")
    async with make_system(worker) as system:
        front = await system.front()
        session = await front.session()
        worker.state = admin_pb2.WORKER_STATE_DRAINING
        await system.supervisor.publish()
        async with asyncio.timeout(20):
            while front.front_end._table.ready():
                await front.front_end._table.wait_update()
        refusal = await refused(drained(front.chat(session)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKER")
        assert refusal.retry_s == 1
        now = await front.get(session)
        assert (now.token_count, now.active_turn_id) == (0, "")


async def test_front_end_without_any_worker_yet(make_system: Any) -> None:
    async with make_system() as system:
        front = await system.front()
        for call in (front.session(), drained(front.chat(""))):
            refusal = await refused(call)
            assert (refusal.reason, refusal.retry_s) == ("NO_WORKER", 1)


async def test_full_worker_is_passed_over(make_system: Any) -> None:
    full = ScriptedWorker("w0", refuse=grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with make_system(full, ScriptedWorker("w1")) as system:
        front = await system.front()
        session = await front.session()
        for _ in range(2):
            assert len(tokens_of(await front.answer(session))) == 8
        assert (await front.get(session)).worker_id == "w1"


async def test_full_workers_are_told(make_system: Any) -> None:
    workers = [ScriptedWorker(f"w{i}", refuse=grpc.StatusCode.RESOURCE_EXHAUSTED) for i in range(2)]
    async with make_system(*workers) as system:
        front = await system.front()
        session = await front.session()
        refusal = await refused(drained(front.chat(session)))
        assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "WORKERS_FULL")
        assert refusal.retry_s == 1
        assert (await front.get(session)).token_count == 0


async def test_killed_store_that_comes_back_costs_nothing(make_system: Any, tmp_path: Path) -> None:
    store = RedisServer.start(tmp_path, "always")
    gate = asyncio.Semaphore(2)
    async with make_system(ScriptedWorker("w0", gate=gate)) as system:
        system._flags["redis.url"] = store.url
        front = await system.front()
        session = await front.session()
        running = front.chat(session)
        frames: list[generation_pb2.GenerationFrame] = []
        while len(tokens_of(frames)) < 2:
            frames.append(await running.read())
        os.kill(store.process.state.pid, signal.SIGKILL)
        store.stop()
        for _ in range(6):
            gate.release()
        store = RedisServer.start(tmp_path, "always")
        while (frame := await running.read()) is not grpc.aio.EOF:
            frames.append(frame)
        prompt = system.prompt("Hi")
        assert tokens_of(frames) == continuation(prompt, 8)
        assert (await front.get(session)).token_count == len(prompt) + 8
    store.stop()


class KillableFrontEnd:
    """A front end in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process, address: str) -> None:
        self.process, self.address = process, address

    @classmethod
    async def start(cls, system: Any, lease_ttl_s: float) -> "KillableFrontEnd":
        environment = os.environ | {
            "TACTIC_REDIS_URL": system._flags["redis.url"],
            "TACTIC_MODEL": str(system._flags["engine.model_path"]),
            "TACTIC_WORKERS__SUPERVISOR_ADDRESS": system.supervisor.address,
            "TACTIC_FRONTEND__PORT": "0",
            "TACTIC_FRONTEND__LEASE_TTL_S": str(lease_ttl_s),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tactic.service.frontend",
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert process.stdout is not None
        listening = json.loads(await process.stdout.readline())
        assert listening["event"] == "listening"
        return cls(process, listening["address"])

    async def stop(self, number: signal.Signals) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.process.wait()


async def begun_on_a_killed_front_end(
    system: Any, session: str, gate: asyncio.Semaphore
) -> list[generation_pb2.GenerationFrame]:
    """Begins turn "t" on a front end of its own and kills that after three tokens."""
    killable = await KillableFrontEnd.start(system, lease_ttl_s=0.5)
    try:
        async with grpc.aio.insecure_channel(killable.address) as channel:
            request = generation_pb2.ChatCompletionRequest(
                session_id=session,
                messages=[generation_pb2.Message(role="user", content="Hi")],
                sampling=types_pb2.SamplingOptions(max_tokens=8),
                turn_id="t",
            )
            async with asyncio.timeout(20):
                async for health in health_pb2_grpc.HealthStub(channel).Watch(
                    health_pb2.HealthCheckRequest()
                ):
                    if health.status == health_pb2.HealthCheckResponse.SERVING:
                        break
            call = generation_pb2_grpc.ChatServiceStub(channel).ChatCompletion(request)
            seen: list[generation_pb2.GenerationFrame] = []
            while len(tokens_of(seen)) < 3:
                seen.append(await call.read())
            await killable.stop(signal.SIGKILL)
            return seen
    finally:
        await killable.stop(signal.SIGKILL)
        for _ in range(20):
            gate.release()


async def test_turn_of_a_killed_front_end_goes_on_at_another(make_system: Any) -> None:
    gate = asyncio.Semaphore(3)
    async with make_system(ScriptedWorker("w0", gate=gate)) as system:
        front = await system.front()
        session = await front.session()
        seen = await begun_on_a_killed_front_end(system, session, gate)
        rest = await front.answer(session, turn_id="t", resume_after_seq=seen[-1].seq)
        assert [frame.seq for frame in seen + rest] == list(range(1, len(seen + rest) + 1))
        assert tokens_of(seen + rest) == continuation(system.prompt("Hi"), 8)


async def test_session_goes_on_without_the_turn_of_a_killed_front_end(make_system: Any) -> None:
    gate = asyncio.Semaphore(3)
    async with make_system(worker := ScriptedWorker("w0", gate=gate)) as system:
        front = await system.front()
        session = await front.session()
        seen = await begun_on_a_killed_front_end(system, session, gate)
        # Busy, until the dead front end's lease has run out.
        redis = connect(system._flags["redis.url"])
        async with asyncio.timeout(20):
            while await redis.exists(Keys(session).lease):
                await asyncio.sleep(0.02)
        await redis.aclose()
        await front.answer(session, "More")
        log = system.prompt("Hi") + tokens_of(seen) + system.prompt("More", "assistant", 1)
        assert list(worker.requests[-1].token_ids) == log


async def test_front_end_stops_in_peace(make_system: Any) -> None:
    async with make_system(ScriptedWorker("w0")) as system:
        killable = await KillableFrontEnd.start(system, lease_ttl_s=1)
        assert await killable.stop(signal.SIGTERM) == 0


async def test_front_end_says_why_it_cannot_start(make_system: Any) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TACTIC_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tactic.service.frontend",
        env=environment,
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert b"redis.url is not set" in err.splitlines()[-1]
