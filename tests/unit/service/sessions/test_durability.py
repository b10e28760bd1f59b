"""What was acknowledged survives the death of the server's process.

That takes `appendfsync always`. With `everysec` the server puts off writing its file while a sync is under
way, up to two seconds, and answers all the same: killed then, it loses what it has acknowledged, as this test
shows on a busy disk.
"""

import asyncio
import os
import signal
from array import array
from pathlib import Path

from redis.exceptions import RedisError

from tactic.service.launch.redis_server import RedisServer
from tactic.service.sessions import AppendStore, Lease, SessionStore, TurnStore, connect


async def test_killed_server_loses_nothing_acknowledged(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path, "always")
    acknowledged: dict[str, int] = {}
    enough = asyncio.Event()

    async def write(name: str) -> None:
        redis = connect(server.url)
        sessions, appends = SessionStore(redis), AppendStore(redis, 600)
        turns = TurnStore(redis, 600, 600)
        await sessions.create(name, "m", {})
        acknowledged[name] = 0
        try:
            while True:
                done = acknowledged[name]
                if done % 2:
                    lease, turn = await turns.begin(
                        await sessions.get(name),
                        f"t{done}",
                        request=b"",
                        digest="",
                        prompt=array("I", [done]),
                    )
                    await turns.record(lease, 1, b"frame")
                    await turns.end(lease, turn, array("I", [done]), last_frame=(2, b"end"))
                else:
                    append = await appends.begin(name, f"a{done}")
                    assert isinstance(append, Lease)
                    await appends.add(
                        append,
                        offset=0,
                        size=2,
                        token_ids=array("I", [done, done]),
                        carry=b"",
                        anchor="",
                        last=True,
                    )
                acknowledged[name] = done + 1
                if sum(acknowledged.values()) > 400:
                    enough.set()
        except RedisError:
            # The server is dead, which ends this writer.
            return
        finally:
            await redis.aclose()

    writers = [asyncio.create_task(write(f"s{i}")) for i in range(8)]
    await enough.wait()
    os.kill(server.process.state.pid, signal.SIGKILL)
    await asyncio.gather(*writers)
    server.stop()

    restarted = RedisServer.start(tmp_path, "always")
    redis = connect(restarted.url)
    sessions = SessionStore(redis)
    try:
        assert {session.session_id for session in await sessions.page(100)} == set(acknowledged)
        for name, done in acknowledged.items():
            log = list(await sessions.read_log(await sessions.get(name)))
            # The change under way at the kill may be there or not, but never half.
            assert log in ([i // 2 for i in range(2 * done)], [i // 2 for i in range(2 * done + 2)])
    finally:
        await redis.aclose()
        restarted.stop()
