import socket
from pathlib import Path

import pytest

from tactic.service.config import load_settings
from tactic.service.launch import LaunchError, preflight


def check(**flags: object) -> None:
    preflight.check(load_settings({name.replace("__", "."): value for name, value in flags.items()}).settings)


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"127\.0\.0\.1:{port} .*--port"):
            check(frontend__port=port)


def test_a_foreign_interface_is_named() -> None:
    with pytest.raises(LaunchError, match=r"frontend\.port: cannot listen on 192\.0\.2\.1"):
        check(frontend__host="192.0.2.1", frontend__port=0)


def test_a_redis_that_does_not_answer_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"redis\.url: no answer from unix://"):
        check(frontend__port=0, redis__url=f"unix://{tmp_path}/none.sock")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_an_incomplete_checkpoint_is_named(tmp_path: Path, missing: str) -> None:
    for name in {"config.json", "tokenizer.json", "tokenizer_config.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(LaunchError, match=f"has no {missing}"):
        check(frontend__port=0, engine__model_path=str(tmp_path))


def test_a_wrong_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="nowhere is not a directory"):
        check(frontend__port=0, engine__model_path=str(tmp_path / "nowhere"))
