"""What the `tactic` backend can't serve, found before the first token at the latest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class UnsupportedError(ValueError):
    """The checkpoint, or a setting of the engine, is not supported; the message says which and what to do."""


def check_checkpoint(model_path: str) -> dict[str, Any]:
    """Reads config.json of a checkpoint directory and refuses what Tactic can't serve.

    Returns:
        The configuration.

    Raises:
        UnsupportedError: it is missing or unreadable, or the architecture has attention of another kind.
    """
    path = Path(model_path) / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except OSError as error:
        raise UnsupportedError(
            f"engine.model_path: no checkpoint at {model_path!r} ({error.strerror}: config.json); "
            "give the directory of a Hugging Face checkpoint"
        ) from error
    except ValueError as error:
        raise UnsupportedError(f"engine.model_path: {path} is not JSON: {error}") from error
    architecture = ", ".join(config.get("architectures") or ["unknown"])
    if config.get("kv_lora_rank"):
        raise UnsupportedError(
            f"engine.model_path: {architecture} has multi-head latent attention (kv_lora_rank); "
            "Tactic serves dense grouped-query attention"
        )
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        raise UnsupportedError(
            f"engine.model_path: {architecture} has a sliding window of {config['sliding_window']} "
            "positions; Tactic serves full attention in every layer"
        )
    if any(kind != "full_attention" for kind in config.get("layer_types") or []):
        raise UnsupportedError(
            f"engine.model_path: {architecture} has layers other than full attention (layer_types); "
            "Tactic serves full attention in every layer"
        )
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if not heads:
        raise UnsupportedError(
            f"engine.model_path: {architecture} has no num_attention_heads: not a decoder LLM"
        )
    if kv_heads and heads % kv_heads:
        raise UnsupportedError(
            f"engine.model_path: {heads} query heads are not a multiple of {kv_heads} KV heads in "
            f"{architecture}"
        )
    return config


def check_runner(runner: Any) -> None:
    """Refuses an engine whose pools or flags the backend can't work with.

    Raises:
        UnsupportedError: naming the flag.
    """
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    args = runner.server_args
    refused = {
        "multi-head latent attention": runner.use_mla_backend,
        f"--page-size {args.page_size} (only 1)": args.page_size != 1,
        f"--speculative-algorithm {args.speculative_algorithm}": args.speculative_algorithm is not None,
        "a sliding window": runner.sliding_window_size is not None,
        "--enable-mixed-chunk": args.enable_mixed_chunk,
        "--enable-hierarchical-cache": args.enable_hierarchical_cache,
        f"a KV pool of type {type(runner.token_to_kv_pool).__name__} (only MHATokenToKVPool)": not isinstance(
            runner.token_to_kv_pool, MHATokenToKVPool
        ),
        "a decode context of several ranks (--dcp-size)": args.dcp_size > 1,
    }
    reasons = [reason for reason, present in refused.items() if present]
    if reasons:
        raise UnsupportedError(f"the tactic attention backend does not support {'; '.join(reasons)}")
    if args.get_attention_backends() != ("tactic", "tactic"):
        raise UnsupportedError(
            f"prefill and decode run on {args.get_attention_backends()}: start with "
            f"attention_backend='tactic' for both"
        )
