import os
import signal
from pathlib import Path

import pytest
import redis

from tactic.service.launch import LaunchError, RedisServer


def test_acknowledged_writes_survive_a_kill(tmp_path: Path) -> None:
    server = RedisServer.start(tmp_path)
    with redis.Redis.from_url(server.url) as client:
        for number in range(500):
            client.set(f"key:{number}", number)
    os.kill(server.process.popen.pid, signal.SIGKILL)
    server.process.popen.wait()
    server = RedisServer.start(tmp_path)
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 500
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    server.stop()


def test_a_deep_state_directory_still_gets_a_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    server = RedisServer.start(deep)
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    server.stop()


def test_a_damaged_file_is_reported_with_the_log(tmp_path: Path) -> None:
    RedisServer.start(tmp_path).stop()
    (tmp_path / "redis" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(LaunchError, match=r"(?s)redis ended with status .*manifest"):
        RedisServer.start(tmp_path)
