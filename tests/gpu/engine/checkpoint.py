"""A checkpoint of a shape with random weights, on disk: every engine that loads it has the same ones."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

# Of a projection's outputs. SGLang's own random weights are all within ±0.001: attention then means nothing.
GAIN = {"self_attn.q_proj": 1.7, "self_attn.k_proj": 1.7}


def write_checkpoint(directory: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """Writes config.json and a file of bf16 weights for each layer, and returns `directory`.

    It is left as it is if it has been written before.
    """
    if (directory / "config.json").exists():
        return directory
    directory.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(seed)
    hidden, inner, dim = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    query, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim

    def matrix(rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        drawn = torch.randn(rows, columns, generator=generator, device=device)
        return (drawn * (gain / columns**0.5)).to(torch.bfloat16).cpu()

    def save(name: str, weights: dict[str, torch.Tensor]) -> None:
        save_file(weights, directory / f"model-{name}.safetensors", {"format": "pt"})

    ones = torch.ones(hidden, dtype=torch.bfloat16)
    save(
        "ends",
        {
            "model.embed_tokens.weight": matrix(config["vocab_size"], hidden, hidden**0.5),
            "model.norm.weight": ones,
            "lm_head.weight": matrix(config["vocab_size"], hidden, 4.0),
        },
    )
    shapes = {
        "self_attn.q_proj": (query, hidden),
        "self_attn.k_proj": (kv, hidden),
        "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, query),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        weights = {f"{prefix}.{n}.weight": matrix(*shape, GAIN.get(n, 1.0)) for n, shape in shapes.items()}
        for norm in ("input", "post_attention"):
            weights[f"{prefix}.{norm}_layernorm.weight"] = ones.clone()
        save(f"layer-{layer:03d}", weights)
    # Last: it says that the others are complete.
    (directory / "config.json").write_text(json.dumps(config))
    return directory
