"""Structured weights that wait on the host for an engine, and shapes with fewer layers, as memory allows."""

import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from engines import SHAPES, Engine
from structured import ModelShape, Weights
from structured import prompt as structured_prompt

STATIC = 0.86
"""Share of a GPU's memory for weights, KV cache and index."""
AROUND = 3e9
"""Bytes of it for what is counted neither as a layer's nor as the vocabulary's."""
INDEX = 1.03
"""KV cache and index, over the KV cache."""


def layers_that_fit(model: str, tokens: int, *, gpus: int = 1) -> int:
    """Layers of a shape for which so many GPUs have memory, with a bf16 KV cache of so many tokens."""
    config = SHAPES[model]
    layers = int(config["num_hidden_layers"])
    if not torch.cuda.is_available():
        return layers
    hidden, dim = config["hidden_size"], config["head_dim"]
    kv = config["num_key_value_heads"] * dim
    attention = hidden * (2 * config["num_attention_heads"] * dim + 2 * kv)
    layer = attention + 3 * hidden * config["intermediate_size"] + 2 * kv * tokens * INDEX
    ends = 2 * config["vocab_size"] * hidden
    budget = STATIC * torch.cuda.mem_get_info()[1] - AROUND
    return min(layers, int((budget * gpus / 2 - ends) / layer))


def with_layers(layers: int) -> dict[str, Any]:
    """Arguments of `Engine` for a shape with so many layers; 0 takes its own."""
    if not layers:
        return {}
    return {"json_model_override_args": json.dumps({"num_hidden_layers": layers})}


@dataclass(frozen=True)
class Calibrated:
    """Structured weights of a shape for prompts of a length, on the host until an engine takes them.

    They are made before the engine, which leaves them little memory: calibration at a million tokens wants
    10 GB of a GPU.

    Attributes:
        shape: of the model.
        length: tokens of a prompt.
        tensors: names and values, a layer at a time.
        about: for the result.
    """

    shape: ModelShape
    length: int
    tensors: list[list[tuple[str, torch.Tensor]]]
    about: dict[str, Any]

    @classmethod
    def create(cls, model: str, length: int, *, layers: int = 0) -> "Calibrated":
        """Draws and calibrates them, on a GPU where there is one.

        Args:
            model: one of `SHAPES`.
            length: tokens of a prompt.
            layers: as for `shaped`.
        """
        config = SHAPES[model] | ({"num_hidden_layers": layers} if layers else {})
        shape = ModelShape.of(config)
        began = time.monotonic()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        weights = Weights.create(shape, structured_prompt(length, 0, shape), seed=0, device=device)
        tensors = [[(name, value.cpu()) for name, value in some] for some in weights.tensors()]
        about = {
            "kind": "random, structured and calibrated: see structured.py",
            "oracle_tokens": statistics.mean(weights.needed),
            "seconds": time.monotonic() - began,
        }
        print(f"weights for {length:,} tokens: {about}", flush=True)
        del weights
        if device == "cuda":
            torch.cuda.empty_cache()
        return cls(shape, length, tensors, about)

    def load(self, engine: Engine) -> None:
        """Writes them over the engine's."""
        for some in self.tensors:
            there = [(name, value.cuda() if torch.cuda.is_available() else value) for name, value in some]
            engine.load(there)

    def prompt(self, seed: int) -> list[int]:
        """Token ids that they are made for."""
        return structured_prompt(self.length, seed, self.shape)
