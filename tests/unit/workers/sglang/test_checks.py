"""What the backend can't serve is refused by name."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tactic.workers.sglang.checks import UnsupportedError, check_checkpoint, check_runner

LLAMA = {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 32, "num_key_value_heads": 8}


def write(directory: Path, config: dict[str, Any]) -> str:
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"sliding_window": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 4},
        {"num_key_value_heads": None},
    ],
)
def test_dense_gqa_is_served(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert check_checkpoint(write(tmp_path, LLAMA | extra)) == LLAMA | extra


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        ({"kv_lora_rank": 512}, "multi-head latent attention"),
        ({"sliding_window": 4096}, "sliding window of 4096"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types"),
        ({"num_attention_heads": None}, "not a decoder"),
        ({"num_key_value_heads": 7}, "not a multiple of 7"),
    ],
)
def test_other_attention_is_not(tmp_path: Path, extra: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"engine\.model_path: .*{match}"):
        check_checkpoint(write(tmp_path, LLAMA | extra))


def test_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no checkpoint at"):
        check_checkpoint(str(tmp_path / "nothing"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UnsupportedError, match="is not JSON"):
        check_checkpoint(str(tmp_path))


def runner(**changes: Any) -> SimpleNamespace:
    """The part of SGLang's ModelRunner that is looked at, with a real KV pool."""
    import torch
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    pool = MHATokenToKVPool(
        size=8,
        page_size=1,
        dtype=torch.float32,
        head_num=1,
        head_dim=4,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )
    args = {
        "page_size": 1,
        "speculative_algorithm": None,
        "enable_mixed_chunk": False,
        "enable_hierarchical_cache": False,
        "dcp_size": 1,
        "get_attention_backends": lambda: ("tactic", "tactic"),
    }
    fields = {"use_mla_backend": False, "sliding_window_size": None, "token_to_kv_pool": pool}
    args |= {key: value for key, value in changes.items() if key in args}
    fields |= {key: value for key, value in changes.items() if key in fields}
    return SimpleNamespace(server_args=SimpleNamespace(**args), **fields)


@pytest.mark.usefixtures("sglang")
def test_the_engine_that_we_start_is_fine() -> None:
    check_runner(runner())


@pytest.mark.usefixtures("sglang")
@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"use_mla_backend": True}, "latent attention"),
        ({"page_size": 16}, "--page-size 16"),
        ({"speculative_algorithm": "EAGLE"}, "--speculative-algorithm EAGLE"),
        ({"sliding_window_size": 128}, "sliding window"),
        ({"enable_mixed_chunk": True}, "--enable-mixed-chunk"),
        ({"enable_hierarchical_cache": True}, "--enable-hierarchical-cache"),
        ({"token_to_kv_pool": object()}, "a KV pool of type object"),
        ({"dcp_size": 2}, "--dcp-size"),
        ({"get_attention_backends": lambda: ("tactic", "triton")}, "attention_backend='tactic' for both"),
    ],
)
def test_flags_that_do_not_work_are_named(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(UnsupportedError, match=match):
        check_runner(runner(**changes))


@pytest.mark.usefixtures("sglang")
def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(UnsupportedError, match=r"--page-size 4 .*; .*--enable-mixed-chunk"):
        check_runner(runner(page_size=4, enable_mixed_chunk=True))
