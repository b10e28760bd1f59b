"""A local checkpoint in transformers, with attention that a caller replaces pass by pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from tactic.workers.evaluation.context import Context, KVCache, attention_hook, forward, prefill_attention
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.layer import Layer
from tactic.workers.sglang.checks import UnsupportedError, check_checkpoint

ATTENTION = "tactic_evaluation"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PREFILL_CHUNK = 131072


@dataclass(frozen=True)
class Checkpoint:
    """A model and its tokenizer.

    Attributes:
        path: directory.
        model: of transformers.
        tokenizer: of transformers.
        device: "cuda" or "cpu".
        sinks: first positions that every method reads.
    """

    path: Path
    model: Any
    tokenizer: Any
    device: str
    sinks: int = 16

    @classmethod
    def load(cls, path: Path, *, device: str = "auto", dtype: str = "auto", sinks: int = 16) -> Checkpoint:
        """Loads a checkpoint directory.

        Args:
            path: of a dense grouped-query decoder with full attention in every layer.
            device: "cuda", "cpu", or "auto": a GPU if there is one.
            dtype: one of `DTYPES`, or "auto": float32 on CPU, bfloat16 on a GPU.
            sinks: first positions that every method reads.

        Raises:
            EvaluationError: there is no checkpoint, Tactic does not serve its kind, or `device` or `dtype`
                can't be used.
        """
        try:
            check_checkpoint(str(path))
        except UnsupportedError as error:
            raise EvaluationError(str(error).replace("engine.model_path", "--model")) from error
        device = pick_device(device)
        if dtype == "auto":
            dtype = "bfloat16" if device == "cuda" else "float32"
        if dtype not in DTYPES:
            raise EvaluationError(f"--dtype {dtype} is unknown, use one of {', '.join(DTYPES)}")
        logging.disable_progress_bar()
        AttentionInterface.register(ATTENTION, attention_hook)
        config = AutoConfig.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=DTYPES[dtype], attn_implementation=ATTENTION
        )
        return cls(
            path,
            model.to(device).eval(),
            AutoTokenizer.from_pretrained(path),
            device,
            sinks,
        )

    @property
    def context_length(self) -> int:
        """Most positions that the model was made for."""
        return int(self.model.config.max_position_embeddings)

    @property
    def stop_tokens(self) -> list[int]:
        """Ids that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])

    @torch.no_grad()
    def prefill(self, tokens: Sequence[int], *, room: int = 256) -> Context:
        """Computes the KV cache of a prompt with dense attention, in chunks.

        Args:
            tokens: the prompt's ids, at least two.
            room: most tokens that will follow it.

        Raises:
            EvaluationError: prompt and room exceed the model's context length.
        """
        if len(tokens) + room > self.context_length:
            raise EvaluationError(
                f"a prompt of {len(tokens):,} tokens and {room} to generate exceed the "
                f"{self.context_length:,} positions of {self.path} (max_position_embeddings); "
                "ask for a shorter context"
            )
        config = self.model.config
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, len(tokens) + room, config.num_key_value_heads, head_dim)
        cache = KVCache(*shape, self.model.dtype, self.device)
        for begin in range(0, len(tokens) - 1, PREFILL_CHUNK):
            chunk = tokens[begin : min(begin + PREFILL_CHUNK, len(tokens) - 1)]
            forward(self.model, chunk, cache, prefill_attention, keep=1)
            cache.length += len(chunk)
        layers = [
            Layer(number, cache.keys[number, : cache.length], self.sinks)
            for number in range(config.num_hidden_layers)
        ]
        return Context(self.model, cache, tokens[-1], layers)


def pick_device(device: str) -> str:
    """Names a device: "cuda" or "cpu"; "auto" takes a GPU if there is one.

    Raises:
        EvaluationError: there is no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise EvaluationError("--device cuda: there is no CUDA device; use --device cpu")
    return device
