"""How a deployment's EngineSpec becomes a running SGLang engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tactic.v1.admin_pb2 import Model
from tactic.worker.v1.supervisor_pb2 import DeploymentSpec, EngineSpec
from tactic.workers.config import BackendConfig, IndexConfig, RefreshConfig
from tactic.workers.sglang.checks import UnsupportedError, check_checkpoint
from tactic.workers.sglang.device import DEVICE_VARIABLE, engine_device

CPU_KV_TOKENS = 262_144
CPU_PREFILL_CHUNK = 4096

RESERVED_POSITIONS = 8
"""Positions of the context, and tokens of the KV pool, that SGLang does not give to any request."""


def backend_config(spec: DeploymentSpec, link: str) -> BackendConfig:
    """The attention backend's settings. Fields that are not set take their defaults.

    Raises:
        pydantic.ValidationError: naming the field and its limit.
    """
    index = {name.name: value for name, value in spec.index.ListFields()}
    refresh = {name.name: value for name, value in spec.refresh.ListFields()}
    if spec.HasField("refresh"):
        # proto3 leaves out what is false.
        refresh["enabled"] = spec.refresh.enabled
    return BackendConfig(index=IndexConfig(**index), refresh=RefreshConfig(**refresh), link=link)


def describe_model(spec: EngineSpec, config: dict[str, Any]) -> Model:
    """What clients are told of the checkpoint whose config.json is `config`."""
    return Model(
        name=spec.model_name or Path(spec.model_path).resolve().name,
        context_length=_context_length(spec, config),
        vocabulary_size=int(config["vocab_size"]),
        random_weights=spec.random_weights or bool(config.get("tactic_random_weights")),
    )


def prepare_environment(spec: EngineSpec, backend: BackendConfig) -> None:
    """Leaves in the environment what the engine's own processes are to find there."""
    if spec.device not in ("", "auto"):
        os.environ[DEVICE_VARIABLE] = spec.device
    if engine_device() == "cpu":
        # SGLang compiles its seeded sampler for a GPU.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
        # Else it wants a NUMA node for each rank.
        cores = sorted(os.sched_getaffinity(0))
        os.environ["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join([",".join(map(str, cores))] * _ranks(spec))
        # Ray's word for it is the CPUs that the actor asked for.
        os.environ["OMP_NUM_THREADS"] = str(spec.threads or max(1, len(cores) // _ranks(spec)))
    # Decode graphs read req_to_token to their end; the scheduler must not write the next step's rows before.
    os.environ["SGLANG_FORCE_COARSE_WAR_BARRIER"] = "1"
    # Beyond the checkpoint's own limit is the operator's explicit choice.
    os.environ["SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN"] = "1"
    backend.to_environment()


def engine_arguments(spec: EngineSpec) -> dict[str, Any]:
    """Arguments of `sgl.Engine`.

    Raises:
        UnsupportedError: a setting, or the checkpoint, can't be served.
    """
    config = check_checkpoint(spec.model_path)
    context_length = _context_length(spec, config)
    _check_ranks(spec, config)
    device = engine_device()
    arguments: dict[str, Any] = {
        "model_path": spec.model_path,
        "device": device,
        "attention_backend": "tactic",
        # Its sampler takes a seed per request.
        "sampling_backend": "pytorch",
        "grammar_backend": "none",
        "skip_tokenizer_init": True,
        "incremental_streaming_output": True,
        "skip_server_warmup": True,
        "log_level": "info",
        "tp_size": _ranks(spec),
        "page_size": 1,
        "context_length": context_length + RESERVED_POSITIONS,
        "random_seed": spec.random_seed,
        "dtype": spec.dtype or "auto",
        "kv_cache_dtype": spec.kv_cache_dtype or "auto",
    }
    if spec.random_weights:
        arguments["load_format"] = "dummy"
    optional = {
        "max_total_tokens": spec.max_total_tokens,
        "mem_fraction_static": spec.mem_fraction_static,
        "max_running_requests": spec.max_running_requests,
        "chunked_prefill_size": spec.chunked_prefill_size,
    }
    arguments |= {name: value for name, value in optional.items() if value}
    if device == "cpu":
        arguments.setdefault("max_total_tokens", CPU_KV_TOKENS)
        arguments.setdefault("chunked_prefill_size", CPU_PREFILL_CHUNK)
        # The scheduler would spin on one of few cores.
        arguments["sleep_on_idle"] = True
        if arguments["dtype"] == "auto":
            arguments["dtype"] = "float32"
    else:
        # Prefill graphs take minutes to capture and gain little at the lengths that Tactic is for.
        arguments["cuda_graph_backend_prefill"] = "disabled"
        if spec.max_running_requests:
            arguments["cuda_graph_max_bs_decode"] = spec.max_running_requests
    return arguments


def _ranks(spec: EngineSpec) -> int:
    return spec.tensor_parallel or 1


def _check_ranks(spec: EngineSpec, config: dict[str, Any]) -> None:
    """Refuses ranks that the heads can't be dealt out to; KV heads fewer than ranks are held by several."""
    ranks, heads = _ranks(spec), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    if heads % ranks or (kv_heads % ranks and ranks % kv_heads):
        raise UnsupportedError(
            f"engine.tensor_parallel = {ranks}: the checkpoint's {heads} query heads and {kv_heads} KV heads "
            "can't be dealt out evenly to as many ranks; use a divisor of both"
        )


def _context_length(spec: EngineSpec, config: dict[str, Any]) -> int:
    """Most positions of a request: as asked for, or the checkpoint's own limit."""
    limit = spec.context_length or int(config.get("max_position_embeddings") or 0)
    if not limit:
        raise UnsupportedError("engine.context_length: the checkpoint names no limit; give one")
    return limit
