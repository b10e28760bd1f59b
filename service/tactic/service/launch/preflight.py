"""Checks that cost milliseconds, before anything that costs half a minute."""

import json
import socket
from pathlib import Path

import redis

from tactic.service.config import Settings
from tactic.service.launch.errors import LaunchError


def check(settings: Settings) -> None:
    """Raises LaunchError for a wrong checkpoint, a taken port or a Redis that does not answer."""
    if settings.engine.model_path is not None:
        _check_model(settings.engine.model_path.expanduser())
    for number in range(settings.frontend.processes):
        _check_port(settings.frontend.host, settings.frontend.port + number if settings.frontend.port else 0)
    if settings.redis.url:
        _check_redis(settings.redis.url)


def _check_model(directory: Path) -> None:
    if not directory.is_dir():
        raise LaunchError(f"engine.model_path: {directory} is not a directory; give that of a checkpoint")
    needed = {
        "config.json": "it is not a Hugging Face checkpoint",
        "tokenizer.json": "save the tokenizer in its fast format: tokenizer.save_pretrained(DIR)",
        "tokenizer_config.json": "copy it from the checkpoint's origin; it names the special tokens",
    }
    for name, advice in needed.items():
        if not (directory / name).is_file():
            raise LaunchError(f"engine.model_path: {directory} has no {name}: {advice}")
    try:
        json.loads((directory / "config.json").read_bytes())
    except ValueError as error:
        raise LaunchError(f"engine.model_path: {directory}/config.json is not JSON: {error}") from None


def _check_port(host: str, port: int) -> None:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As the front end does, so that a port in TIME_WAIT is not called taken.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise LaunchError(
            f"frontend.port: cannot listen on {host}:{port} ({error.strerror}); "
            "give another with --port (0 lets the system pick one), or see `tactic status`"
        ) from None


def _check_redis(url: str) -> None:
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise LaunchError(f"redis.url: no answer from {url}: {error}") from None
