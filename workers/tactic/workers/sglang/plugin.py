"""SGLang's entry point to Tactic: registers the attention backend and the hooks that keep its index.

SGLang loads it in every process that it spawns (entry point group `sglang.srt.plugins`), and only logs its
failures; the decode worker therefore waits for the backend's Hello before it serves.
"""

from __future__ import annotations

from typing import Any

import torch

from tactic.workers.config import BackendConfig
from tactic.workers.index.memory import IndexShape
from tactic.workers.sglang.device import engine_device
from tactic.workers.sglang.native_hash import murmur_hash32
from tactic.workers.sglang.runtime import TacticRuntime

BACKEND = "tactic"

_runtime: TacticRuntime | None = None


def register() -> None:
    """Entry point; see the module's docstring."""
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import add_attention_backend_choices

    add_attention_backend_choices([BACKEND])
    register_attention_backend(BACKEND)(_create_backend)
    hooks: dict[str, tuple[Any, Any]] = {
        "managers.tp_worker.TpModelWorker.forward_batch_generation": (_before_forward, HookType.BEFORE),
        "mem_cache.radix_cache.RadixCache.cache_unfinished_req": (_after_cached_part, HookType.AFTER),
        "mem_cache.radix_cache.RadixCache.cache_finished_req": (_after_cached_all, HookType.AFTER),
        "mem_cache.memory_pool.ReqToTokenPool.free": (_before_free, HookType.BEFORE),
        "model_executor.pool_configurator.DefaultPoolConfigurator._compute_cell_size": (
            _add_index_bytes,
            HookType.AFTER,
        ),
        "sampling.sampling_batch_info.SamplingBatchInfo.from_schedule_batch": (_seed, HookType.AFTER),
    }
    if engine_device() == "cpu":
        # SGLang asks by the backend's name, in modules that keep their own reference.
        for module in ("mem_cache.allocation", "model_executor.forward_batch_info"):
            hooks[f"{module}.support_triton"] = (_no_triton, HookType.REPLACE)
        hooks["layers.sampler.murmur_hash32"] = (murmur_hash32, HookType.REPLACE)
        # SGLang takes an installed NCCL for a reason to use it.
        hooks["distributed.parallel_state.init_model_parallel_group"] = (_no_nccl, HookType.BEFORE)
    for target, (hook, kind) in hooks.items():
        HookRegistry.register(f"sglang.srt.{target}", hook, kind)


def _create_backend(runner: Any) -> Any:
    from tactic.workers.sglang.backend import TacticAttentionBackend, make_dense_backend
    from tactic.workers.sglang.checks import check_runner

    global _runtime  # noqa: PLW0603  # One engine rank per process; SGLang's hooks have no other way to find it.
    check_runner(runner)
    _runtime = TacticRuntime(runner, BackendConfig.from_environment())
    return TacticAttentionBackend(make_dense_backend(runner), _runtime)


def _no_triton(_backend: str) -> bool:
    return False


def _no_nccl(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"use_pynccl": False}


def _before_forward(_worker: Any, batch: Any = None, *_: Any, **__: Any) -> None:
    if _runtime is not None and batch is not None:
        _runtime.before_forward(batch)


def _after_cached_part(_result: Any, _cache: Any, req: Any, *_: Any, **__: Any) -> None:
    if _runtime is not None:
        _runtime.on_cached(req, lambda: req.prefix_indices[: req.cache_protected_len])


def _after_cached_all(_result: Any, cache: Any, req: Any, *_: Any, kv_len_to_handle: int, **__: Any) -> None:
    if _runtime is None:
        return

    def slots() -> torch.Tensor:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        # Here the engine does not say where the cache keeps what the request computed.
        key = RadixKey((req.origin_input_ids + req.output_ids)[:kv_len_to_handle], req.extra_key)
        found: torch.Tensor = cache.match_prefix(MatchPrefixParams(key=key)).device_indices
        return found

    _runtime.on_cached(req, slots)


def _before_free(_pool: Any, req: Any) -> None:
    if _runtime is not None and req.req_pool_idx is not None:
        _runtime.on_release(int(req.req_pool_idx))


def _add_index_bytes(cell_size: int, _self: Any, configurator: Any, num_layers: int) -> int:
    """Takes the index's memory from the KV budget: each token of the pool costs its share of it too."""
    if configurator.server_args.attention_backend != BACKEND:
        return cell_size
    from sglang.srt.runtime_context import get_parallel

    config = BackendConfig.from_environment().index
    model = configurator.model_config
    shape = IndexShape(
        layers=num_layers,
        kv_heads=model.get_num_kv_heads(get_parallel().attn_tp_size),
        head_dim=model.head_dim,
        cluster_size=config.cluster_size,
    )
    return cell_size + int(shape.bytes_per_token(cell_size, config.memory_share))


def _seed(info: Any, _cls: Any, batch: Any, *_: Any, **__: Any) -> Any:
    """Gives every request its own seed; SGLang does so in its deterministic mode only, which refuses us."""
    seeds = [req.sampling_params.sampling_seed for req in batch.reqs]
    if None not in seeds:
        info.sampling_seed = torch.tensor(seeds, dtype=torch.int64, device=batch.device)
    return info
