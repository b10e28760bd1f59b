"""A tiny Llama-shaped checkpoint with random weights: it runs every code path and means nothing.

`python deploy/quickstart/tiny_model.py DIR` writes it; tests and the demo call `make_tiny_checkpoint`.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

BOS, HEADER, FOOTER = "<|begin|>", "<|role|>", "<|end|>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|role|>' + message['role'] + '\n' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|role|>assistant\n' }}{% endif %}"
)


def make_tiny_checkpoint(
    directory: Path,
    *,
    layers: int = 4,
    hidden: int = 192,
    query_heads: int = 6,
    kv_heads: int = 2,
    head_dim: int = 64,
    context_length: int = 131072,
    seed: int = 0,
) -> Path:
    """Writes config, weights, byte-level tokenizer and chat template into `directory`, and returns it.

    Query and key projections are scaled up so that attention is peaked, as in a trained model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = _byte_tokenizer()
    tokenizer.save(str(directory / "tokenizer.json"))
    end = tokenizer.token_to_id(FOOTER)
    vocab = tokenizer.get_vocab_size()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": query_heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "max_position_embeddings": context_length,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": end,
        "tactic_random_weights": True,
    }
    special = {"bos_token": BOS, "eos_token": FOOTER, "chat_template": CHAT_TEMPLATE}
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(
            {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context_length, **special},
            indent=2,
        )
    )
    save_file(
        _weights(config, np.random.default_rng(seed)), directory / "model.safetensors", {"format": "pt"}
    )
    return directory


def _byte_tokenizer() -> Tokenizer:
    """One token per byte, and the special tokens."""
    vocab = {char: index for index, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Short pieces keep the BPE loop linear on text without spaces.
            pre_tokenizers.Split(Regex(r"\s+|[^\s]{1,64}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, HEADER, FOOTER])
    return tokenizer


def _weights(config: dict[str, object], rng: np.random.Generator) -> dict[str, np.ndarray]:
    hidden, inner, dim = (int(str(config[key])) for key in ("hidden_size", "intermediate_size", "head_dim"))
    query = int(str(config["num_attention_heads"])) * dim
    kv = int(str(config["num_key_value_heads"])) * dim

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": matrix(int(str(config["vocab_size"])), hidden, np.sqrt(hidden)),
        # Untied: a tied head would mostly repeat the last token.
        "lm_head.weight": matrix(int(str(config["vocab_size"])), hidden, 4.0),
        "model.norm.weight": np.ones(hidden, np.float32),
    }
    for layer in range(int(str(config["num_hidden_layers"]))):
        prefix = f"model.layers.{layer}."
        weights |= {
            prefix + "input_layernorm.weight": np.ones(hidden, np.float32),
            prefix + "post_attention_layernorm.weight": np.ones(hidden, np.float32),
            prefix + "self_attn.q_proj.weight": matrix(query, hidden, 1.7),
            prefix + "self_attn.k_proj.weight": matrix(kv, hidden, 1.7),
            prefix + "self_attn.v_proj.weight": matrix(kv, hidden, 3.0),
            prefix + "self_attn.o_proj.weight": matrix(hidden, query),
            prefix + "mlp.gate_proj.weight": matrix(inner, hidden),
            prefix + "mlp.up_proj.weight": matrix(inner, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    return weights


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    print(make_tiny_checkpoint(parser.parse_args().directory))
