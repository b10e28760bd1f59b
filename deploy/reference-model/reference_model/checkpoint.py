"""Checkpoints in files under 16 MB, all bf16: weights to ship, optimizer state to resume from."""

import json
from pathlib import Path

import torch
from reference_model.model import Llama, ModelConfig
from reference_model.optimizer import Optimizer
from reference_model.tokenizer import BEGIN, CHAT_TEMPLATE, END, PAD, Codec
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

_FILE_BYTES = 15_000_000


def save(directory: Path, model: Llama, optimizer: Optimizer | None, step: int) -> None:
    """Writes weights (with index) and, if given, the optimizer's state."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: p.detach() for name, p in model.named_parameters()}
    placed = _write(directory, "model", weights, step)
    index = {"metadata": {"total_size": sum(2 * p.numel() for p in weights.values())}, "weight_map": placed}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    if optimizer:
        _write(directory, "optimizer", optimizer.state, step)


def resume(directory: Path, model: Llama, optimizer: Optimizer | None) -> int:
    """Loads what `save` wrote and returns the number of steps done.

    Raises:
        FileNotFoundError: there are no weights in `directory`.
    """
    weights, step = _read(directory, "model")
    model.load_state_dict(weights)
    if optimizer:
        state, _ = _read(directory, "optimizer")
        for name, value in state.items():
            optimizer.state[name].copy_(value)
        optimizer.steps = step
    return step


def describe(directory: Path, config: ModelConfig, codec: Codec) -> None:
    """Adds config, tokenizer, chat template and generation settings: a whole Hugging Face checkpoint."""
    begin, end = codec.begin, codec.end
    ids = {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": codec.tokenizer.token_to_id(PAD)}
    fields = {**config.to_huggingface(), **ids, "torch_dtype": "bfloat16"}
    _json(directory / "config.json", fields)
    _json(directory / "generation_config.json", {**ids, "do_sample": False, "max_new_tokens": 256})
    codec.tokenizer.save(str(directory / "tokenizer.json"))
    _json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": config.max_position_embeddings,
            "bos_token": BEGIN,
            "eos_token": END,
            "pad_token": PAD,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write(directory: Path, stem: str, tensors: dict[str, Tensor], step: int) -> dict[str, str]:
    """Splits tensors over files in their order; returns which file holds which."""
    shards: list[dict[str, Tensor]] = [{}]
    room = _FILE_BYTES
    for name, tensor in tensors.items():
        size = 2 * tensor.numel()
        if size > room:
            shards.append({})
            room = _FILE_BYTES
        shards[-1][name] = tensor.to("cpu", torch.bfloat16).contiguous()
        room -= size
    placed: dict[str, str] = {}
    for old in directory.glob(f"{stem}-*.safetensors"):
        old.unlink()
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, directory / file, {"format": "pt", "step": str(step)})
        placed |= dict.fromkeys(shard, file)
    return placed


def _read(directory: Path, stem: str) -> tuple[dict[str, Tensor], int]:
    files = sorted(directory.glob(f"{stem}-*.safetensors"))
    if not files:
        raise FileNotFoundError(
            f"{directory} has no {stem}-*.safetensors; give a folder that training has written"
        )
    tensors: dict[str, Tensor] = {}
    step = 0
    for file in files:
        with safe_open(file, "pt") as opened:
            step = int((opened.metadata() or {}).get("step", 0))
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors, step
