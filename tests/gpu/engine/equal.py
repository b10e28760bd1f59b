"""Greedy output at P = 1 beside dense FlashInfer's: how often it differs, and by how much.

    python tests/gpu/engine/equal.py --model deploy/reference-model/checkpoint --out equal.json
    python tests/gpu/engine/equal.py --model llama-3.1-8b --prompts 16 --out equal_8b.json

Both sum the same products in another order, so that tokens whose logits differ by less than bf16 can tell may
change places. Dense attention does so itself when the batch is another: that is run, too, as what to expect.
Logits are told by log-probabilities, over the tokens before the first difference.
"""

import argparse
import json
import statistics
import sys
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from engines import SHAPES, Engine, device_name, prepare_environment, random_prompt

from tactic.workers.config import IndexConfig

EVERYTHING = {"threshold": 1.0}
TOP = 5
# Weights in which attention matters to the outcome; SGLang's are all within ±0.001.
GAIN = {"self_attn.q_proj": 1.7, "self_attn.k_proj": 1.7, "self_attn.v_proj": 1.0, "self_attn.o_proj": 1.0}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="llama-3.1-8b", help=f"directory, or one of {', '.join(SHAPES)}")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--longest", type=int, default=16_000, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="generated of each")
    parser.add_argument("--dense", default="flashinfer", help="SGLang's backend to compare with")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    prepare_environment()
    prompts = [
        random_prompt(max(64, arguments.longest * (i + 1) ** 2 // arguments.prompts**2), 1000 + i)
        for i in range(arguments.prompts)
    ]
    settings = {
        "context_length": arguments.longest + 4096,
        "max_running_requests": 8,
        "chunked_prefill_size": 8192,
    }
    if not torch.cuda.is_available():
        settings["max_total_tokens"] = 2 * arguments.longest + 8192
    index = IndexConfig(min_clustered=1024)
    with Engine(arguments.model, arguments.dense, **settings) as engine:
        _randomize(engine, arguments.model)
        dense = [_run(engine, [prompt], arguments.tokens)[0] for prompt in prompts]
        batched = _run(engine, prompts, arguments.tokens)
    with Engine(arguments.model, "tactic", index=index, **settings) as engine:
        _randomize(engine, arguments.model)
        tactic, dense_steps = [], 0
        for i, prompt in enumerate(prompts):
            name = f"{i:08d}"
            tactic += _run(engine, [prompt], arguments.tokens, rid=[name])
            report = engine.report(name)
            if len(prompt) > 2 * index.min_clustered:
                assert not report.dense_steps, f"a prompt of {len(prompt)} did not run through the index"
            dense_steps += report.dense_steps
        tactic_batched = _run(engine, prompts, arguments.tokens)
    result = {
        "device": device_name(),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "dense_steps": dense_steps,
        "P = 1 beside dense": compare(dense, tactic),
        "P = 1 in a batch beside dense": compare(dense, tactic_batched),
        "dense in a batch beside dense": compare(dense, batched),
    }
    print(json.dumps(result, indent=1))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def _run(engine: Engine, prompts: list[list[int]], tokens: int, **arguments: Any) -> list[dict[str, Any]]:
    return engine.generate(
        prompts, tokens, EVERYTHING, return_logprob=True, top_logprobs_num=TOP, **arguments
    )


def compare(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> dict[str, Any]:
    """Divergence of answers, and differences of log-probabilities before it."""
    differences: list[float] = []
    gaps: list[float] = []
    diverged = compared = 0
    for a, b in zip(expected, actual, strict=True):
        ids = list(zip(a["output_ids"], b["output_ids"], strict=True))
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], ids)))
        compared += same
        tops = [[dict(_tops(step)) for step in each["meta_info"]["output_top_logprobs"]] for each in (a, b)]
        for left, right in zip(tops[0][:same], tops[1][:same], strict=True):
            differences += [abs(left[token] - right[token]) for token in left.keys() & right.keys()]
        if same < len(ids):
            diverged += 1
            first = sorted(tops[0][same].values(), reverse=True)
            gaps.append(first[0] - tops[0][same].get(ids[same][1], first[-1]))
    return {
        "answers": len(expected),
        "diverged": diverged,
        "tokens_compared": compared,
        "divergences_per_token": diverged / max(1, compared + diverged),
        # At a divergence: how much more probable the expected token was, to the dense backend.
        "log_probability_gaps": gaps,
        "difference_mean": statistics.mean(differences) if differences else None,
        "difference_max": max(differences, default=None),
        "difference_p99": sorted(differences)[int(0.99 * len(differences))] if differences else None,
    }


def _tops(step: list[Any]) -> list[tuple[int, float]]:
    """Token id and log-probability of SGLang's (log-probability, id, text)."""
    return [(int(entry[1]), float(entry[0])) for entry in step]


def _randomize(engine: Engine, model: str) -> None:
    """Weights of a shape: normal, with attention that is not uniform and counts; the same in every engine."""
    if model not in SHAPES:
        return
    config = SHAPES[model]
    hidden, dim = config["hidden_size"], config["head_dim"]
    rows = {
        "self_attn.q_proj": (config["num_attention_heads"] * dim, hidden),
        "self_attn.k_proj": (config["num_key_value_heads"] * dim, hidden),
        "self_attn.v_proj": (config["num_key_value_heads"] * dim, hidden),
        "self_attn.o_proj": (hidden, config["num_attention_heads"] * dim),
    }
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)

    def draw(size: tuple[int, int], gain: float) -> torch.Tensor:
        weight = torch.randn(*size, generator=generator, device=device) * (gain / size[1] ** 0.5)
        return weight.to(torch.bfloat16)

    ones = torch.ones(hidden, dtype=torch.bfloat16, device=device)
    vocabulary = config["vocab_size"], hidden
    engine.load([("model.embed_tokens.weight", draw(vocabulary, hidden**0.5)), ("model.norm.weight", ones)])
    engine.load([("lm_head.weight", draw(vocabulary, 4.0))])
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        norms = [(f"{prefix}.{name}_layernorm.weight", ones) for name in ("input", "post_attention")]
        projections = [(f"{prefix}.{name}.weight", draw(rows[name], gain)) for name, gain in GAIN.items()]
        engine.load(norms + projections)


if __name__ == "__main__":
    sys.exit(main())
