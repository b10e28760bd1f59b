"""Signs of life between clients and front ends."""

import asyncio
from typing import Any

import pytest
from scripted_workers import ScriptedWorker

from tactic.service.client import Answer, SamplingOptions, TacticClient
from tactic.service.client import _client as client_module
from tactic.service.frontend import app


async def test_front_end_bears_the_pings_of_a_client_that_waits(
    make_system: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As they are, but 20 times as fast; gRPC sends no more than one ping a second.
    monkeypatch.setattr(app, "LEAST_PING_MS", app.LEAST_PING_MS // 20)
    options = dict(client_module.KEEPALIVE)
    options["grpc.keepalive_time_ms"] //= 20
    monkeypatch.setattr(client_module, "KEEPALIVE", list(options.items()))
    gate = asyncio.Semaphore(1)
    async with make_system(ScriptedWorker("w0", gate=gate)) as system:
        front = await system.front()
        async with TacticClient(front.address) as client:
            # Without a session, so that it could not be resumed.
            asking = asyncio.create_task(
                Answer.collect(client.complete("x", sampling=SamplingOptions(max_tokens=2)))
            )
            await asyncio.sleep(4.5)
            gate.release()
            assert len((await asking).token_ids) == 2
