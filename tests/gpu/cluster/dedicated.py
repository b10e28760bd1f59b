"""A session that decodes while its clustering worker is let run and held up in turns: what a token takes."""

import asyncio
import os
import signal
import time
from typing import Any

from timing import gaps, p99, quantiles
from turns import greedy, text, workers

from tactic.service.client import TacticClient, TextDelta, WorkerKind

DECODE = WorkerKind.WORKER_KIND_DECODE
REPLY_TOKENS = 200_000
"""More than are waited for."""
LONGEST = 24
"""Steps whose times are told, about as many as make p99."""
FIRST_REFRESH_S = 240.0
"""Longest for the first refresh: before it, an interval is decoded, and engine and worker compile."""


async def beside_refreshes(
    client: TacticClient, *, context: int, seconds: float, rounds: int
) -> dict[str, Any]:
    """Generates on one session, with refreshes and, the worker being stopped by a signal, without.

    Args:
        client: of a deployment with one decode and one clustering worker, on GPUs of their own.
        context: characters that the session is given first.
        seconds: of each stretch with, and of each without.
        rounds: of both.
    """
    (worker,) = (await workers(client, WorkerKind.WORKER_KIND_CLUSTERING)).values()
    session = await client.create_session()
    await client.append_context(session.session_id, text(context))
    stamps: list[tuple[float, int]] = []
    stretches: dict[str, list[tuple[float, float]]] = {"refreshed": [], "alone": []}

    async def generate() -> None:
        events = client.chat("Go on.", session_id=session.session_id, sampling=greedy(REPLY_TOKENS))
        async for event in events:
            if isinstance(event, TextDelta):
                stamps.append((time.monotonic(), len(event.token_ids)))

    async def published() -> int:
        return sum(w.stats.refreshes_published for w in (await workers(client, DECODE)).values())

    turn = asyncio.create_task(generate())
    try:
        async with asyncio.timeout(FIRST_REFRESH_S):
            while not await published():
                await asyncio.sleep(0.2)
        for _ in range(rounds):
            began = time.monotonic()
            await asyncio.sleep(seconds)
            os.kill(worker.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            await asyncio.sleep(seconds)
            os.kill(worker.pid, signal.SIGCONT)
            stretches["refreshed"].append((began, stopped))
            stretches["alone"].append((stopped, time.monotonic()))
        (decode,) = (await workers(client, DECODE)).values()
    finally:
        os.kill(worker.pid, signal.SIGCONT)
        turn.cancel()
        await asyncio.gather(turn, return_exceptions=True)
    times = {
        name: [gap for stretch in own for gap in gaps([s for s in stamps if stretch[0] <= s[0] < stretch[1]])]
        for name, own in stretches.items()
    }
    return {
        "positions_at_end": decode.stats.kv_tokens_used,
        "tokens_per_frame": sum(count for _, count in stamps) / len(stamps),
        "refreshes_published": decode.stats.refreshes_published,
        "refreshes_in_place": decode.stats.refreshes_in_place,
        "refreshes_dropped": dict(decode.stats.refreshes_dropped_by_reason),
        **{name: quantiles(own) | {"ms_longest": sorted(own)[-LONGEST:]} for name, own in times.items()},
        "p99_ratio": p99(times["refreshed"]) / p99(times["alone"]),
    }
