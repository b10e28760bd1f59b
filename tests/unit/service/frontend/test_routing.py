"""Where sessions go."""

import asyncio
from typing import Any

from scripted_workers import ScriptedWorker

from tactic.v1 import admin_pb2


async def test_session_stays_with_its_worker_and_idle_ones_take_turns(make_system: Any) -> None:
    workers = [ScriptedWorker(f"w{i}") for i in range(2)]
    async with make_system(*workers) as system:
        front = await system.front()
        sessions = [await front.session() for _ in range(4)]
        for _ in range(3):
            for session in sessions:
                await front.answer(session)
                # The load is taken back just after the last frame.
                await system.nothing_left()
        assert [len(worker.requests) for worker in workers] == [6, 6]
        for session in sessions:
            home = (await front.get(session)).worker_id
            assert (await front.answer(session))[0].started.worker_id == home


async def test_load_is_seen_by_all_front_ends(make_system: Any) -> None:
    gate = asyncio.Semaphore(0)
    workers = [ScriptedWorker(f"w{i}", gate=gate) for i in range(2)]
    async with make_system(*workers) as system:
        one, other = await system.front(), await system.front()
        running = one.chat("", "x" * 1000)
        busy = (await running.read()).started.worker_id
        homes = []
        calls = [other.chat("", "y" * 100) for _ in range(4)]
        for call in calls:
            homes.append((await call.read()).started.worker_id)
        assert busy not in homes
        stats = await other.admin.GetStats(admin_pb2.GetStatsRequest())
        assert stats.turns_running == 5
        for call in (running, *calls):
            call.cancel()


async def test_draining_worker_gets_no_new_turns(make_system: Any) -> None:
    workers = [ScriptedWorker(f"w{i}") for i in range(2)]
    async with make_system(*workers) as system:
        front = await system.front()
        session = await front.session()
        home = (await front.answer(session))[0].started.worker_id
        await front.admin.DrainWorker(admin_pb2.DrainWorkerRequest(worker_id=home))
        async with asyncio.timeout(20):
            while len(front.front_end._table.ready()) > 1:
                await front.front_end._table.wait_update()
        assert (await front.answer(session))[0].started.worker_id != home
        listed = (await front.admin.ListWorkers(admin_pb2.ListWorkersRequest())).workers
        assert [w.state for w in listed if w.worker_id == home] == [admin_pb2.WORKER_STATE_DRAINING]
