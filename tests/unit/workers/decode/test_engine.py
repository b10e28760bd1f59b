"""How a deployment's spec becomes an engine's arguments."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tactic.worker.v1.supervisor_pb2 import DeploymentSpec, EngineSpec, IndexSpec, RefreshSpec
from tactic.workers.config import VARIABLE, BackendConfig
from tactic.workers.decode.engine import (
    CPU_KV_TOKENS,
    RESERVED_POSITIONS,
    backend_config,
    describe_model,
    engine_arguments,
    prepare_environment,
)
from tactic.workers.sglang.checks import UnsupportedError
from tactic.workers.sglang.device import DEVICE_VARIABLE, engine_device


@pytest.fixture
def spec(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> EngineSpec:
    for variable in (
        DEVICE_VARIABLE,
        VARIABLE,
        "OMP_NUM_THREADS",
        "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN",
    ):
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv(DEVICE_VARIABLE, "cpu")
    return EngineSpec(model_path=str(tiny_checkpoint))


def test_defaults_on_the_cpu(spec: EngineSpec) -> None:
    arguments = engine_arguments(spec)
    expected: dict[str, Any] = {
        "device": "cpu",
        "attention_backend": "tactic",
        "tp_size": 1,
        "page_size": 1,
        "dtype": "float32",
        "max_total_tokens": CPU_KV_TOKENS,
    }
    assert expected.items() <= arguments.items()
    # The checkpoint's own limit, and what the engine keeps for itself.
    assert arguments["context_length"] == 131072 + RESERVED_POSITIONS
    assert "load_format" not in arguments


def test_what_is_set_reaches_the_engine(spec: EngineSpec) -> None:
    spec.MergeFrom(
        EngineSpec(
            dtype="bfloat16",
            context_length=4096,
            max_total_tokens=9000,
            max_running_requests=3,
            chunked_prefill_size=512,
            random_weights=True,
            random_seed=11,
        )
    )
    expected = {
        "dtype": "bfloat16",
        "context_length": 4096 + RESERVED_POSITIONS,
        "max_total_tokens": 9000,
        "max_running_requests": 3,
        "chunked_prefill_size": 512,
        "load_format": "dummy",
        "random_seed": 11,
    }
    assert expected.items() <= engine_arguments(spec).items()


@pytest.mark.parametrize(("ranks", "fits"), [(1, True), (2, True), (3, False), (4, False), (6, True)])
def test_heads_are_dealt_out_evenly(spec: EngineSpec, ranks: int, fits: bool) -> None:
    # 6 query heads, 2 KV heads; with 6 ranks each KV head is held by three.
    spec.tensor_parallel = ranks
    if fits:
        assert engine_arguments(spec)["tp_size"] == ranks
    else:
        with pytest.raises(UnsupportedError, match=f"engine.tensor_parallel = {ranks}: .* 6 query heads"):
            engine_arguments(spec)


def test_a_missing_checkpoint_is_named(spec: EngineSpec) -> None:
    spec.model_path = "/nowhere"
    with pytest.raises(UnsupportedError, match=r"engine.model_path.*/nowhere"):
        engine_arguments(spec)


def test_a_checkpoint_without_a_limit_needs_one(spec: EngineSpec, tmp_path: Path) -> None:
    config = json.loads((Path(spec.model_path) / "config.json").read_text())
    del config["max_position_embeddings"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    spec.model_path = str(tmp_path)
    with pytest.raises(UnsupportedError, match=r"engine\.context_length"):
        engine_arguments(spec)
    spec.context_length = 100
    assert engine_arguments(spec)["context_length"] == 100 + RESERVED_POSITIONS


def test_an_empty_spec_takes_every_default() -> None:
    assert backend_config(DeploymentSpec(), link="") == BackendConfig()


def test_a_spec_overrides_what_it_sets() -> None:
    spec = DeploymentSpec(
        index=IndexSpec(segment_size=2048, threshold=0.8, estimator="centroid", check_integrity=True),
        refresh=RefreshSpec(enabled=True, interval=64, scope="full", timeout_s=5),
    )
    config = backend_config(spec, link="ipc://x")
    assert (config.index.segment_size, config.index.cluster_size, config.index.threshold) == (2048, 32, 0.8)
    assert (config.refresh.interval, config.refresh.scope, config.refresh.placement) == (64, "full", "cpu")
    assert config.link == "ipc://x"


def test_a_spec_may_do_without_sinks() -> None:
    assert backend_config(DeploymentSpec(index=IndexSpec(sinks=0)), "").index.sinks == 0


def test_refresh_is_off_where_the_spec_says_so_by_leaving_it_out() -> None:
    assert not backend_config(DeploymentSpec(refresh=RefreshSpec(interval=64)), link="").refresh.enabled
    assert backend_config(DeploymentSpec(), link="").refresh.enabled


def test_a_spec_out_of_range_is_refused() -> None:
    with pytest.raises(ValidationError, match="segment_size"):
        backend_config(DeploymentSpec(index=IndexSpec(segment_size=1000)), link="")


def test_the_environment_of_the_engines_processes(spec: EngineSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    spec.threads, spec.device = 3, "cpu"
    prepare_environment(spec, BackendConfig(link="ipc://y"))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert engine_device() == "cpu"
    assert BackendConfig.from_environment().link == "ipc://y"


@pytest.mark.parametrize(("threads", "ranks", "expected"), [(0, 1, 6), (0, 4, 1), (0, 8, 1), (2, 4, 2)])
def test_threads_of_a_rank_on_the_cpu(
    spec: EngineSpec, monkeypatch: pytest.MonkeyPatch, threads: int, ranks: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(6)))
    # As Ray leaves it to an actor that asks for one core.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spec.threads, spec.tensor_parallel = threads, ranks
    prepare_environment(spec, BackendConfig())
    assert os.environ["OMP_NUM_THREADS"] == str(expected)


@pytest.mark.parametrize(
    ("fields", "name", "limit"),
    [({}, "checkpoint", 131072), ({"model_name": "own", "context_length": 4096}, "own", 4096)],
)
def test_what_clients_are_told(tmp_path: Path, fields: dict[str, Any], name: str, limit: int) -> None:
    spec = EngineSpec(model_path=str(tmp_path / "checkpoint"), **fields)
    config = json.loads('{"vocab_size": 259, "max_position_embeddings": 131072}')
    model = describe_model(spec, config)
    assert (model.name, model.context_length, model.vocabulary_size) == (name, limit, 259)
    assert not model.random_weights
    assert describe_model(spec, config | {"tactic_random_weights": True}).random_weights
