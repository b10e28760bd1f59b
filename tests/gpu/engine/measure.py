"""Times decoding in SGLang on a GPU: the tactic backend beside dense FlashInfer, on one checkpoint.

    python tests/gpu/engine/measure.py --model DIR --context 120000 --batches 1 3 --out result.json

With `--shape llama-3.1-8b` a configuration with random weights is made; attention is then nearly uniform, so
the threshold decides how much is read: the result states that share. With a real checkpoint, `--equal`
compares greedy output at P = 1 with dense output, token for token.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import zmq

from tactic.workers.config import BackendConfig, IndexConfig, RefreshConfig
from tactic.workers.refresh.messages import RequestReport, decode_to_worker

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, help="checkpoint directory")
    parser.add_argument("--shape", choices=["llama-3.1-8b"], help="random weights of this shape instead")
    parser.add_argument("--context", type=int, default=120_000, help="prompt tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--steps", type=int, default=100, help="tokens timed per request")
    parser.add_argument("--threshold", type=float, default=0.9)
    parser.add_argument("--estimator", default=IndexConfig().estimator)
    parser.add_argument("--equal", type=int, default=0, help="prompts on which P = 1 is compared with dense")
    parser.add_argument("--backends", nargs="+", default=["flashinfer", "tactic"])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    model = arguments.model or _random_model()
    results: dict[str, Any] = {
        "device": _device(),
        "arguments": {k: str(v) for k, v in vars(arguments).items()},
    }
    for backend in arguments.backends:
        results[backend] = measure(str(model), backend, arguments)
        arguments.out.write_text(json.dumps(results, indent=1))
    _compare(results, arguments)
    arguments.out.write_text(json.dumps(results, indent=1))


def measure(model: str, backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs one engine and returns its times, outputs and reads."""
    import sglang

    link = f"ipc://{tempfile.mkdtemp()}/link"
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    socket.bind(link)
    BackendConfig(
        index=IndexConfig(estimator=arguments.estimator), refresh=RefreshConfig(enabled=False), link=link
    ).to_environment()
    started = time.monotonic()
    engine = sglang.Engine(
        model_path=model,
        load_format="dummy" if arguments.shape else "auto",
        skip_tokenizer_init=True,
        attention_backend=backend,
        sampling_backend="pytorch",
        grammar_backend="none",
        skip_server_warmup=True,
        cuda_graph_backend_prefill="disabled",
        cuda_graph_max_bs_decode=max(arguments.batches),
        max_running_requests=max(*arguments.batches, 4),
        context_length=arguments.context + 4096,
        incremental_streaming_output=True,
        log_level="info",
    )
    result: dict[str, Any] = {"start_s": time.monotonic() - started}
    print(f"{backend}: engine up after {result['start_s']:.0f} s", flush=True)
    tactic = {"tactic": {"threshold": arguments.threshold}}
    for batch in arguments.batches:
        prompts = [_prompt(arguments.context, seed) for seed in range(batch)]
        # Prefill first and alone, so that the requests of the batch decode together from their first token.
        started = time.monotonic()
        for prompt in prompts:
            _generate(engine, [prompt], 1, tactic)
        prefill = time.monotonic() - started
        times = _step_times(engine, prompts, arguments.steps, tactic)
        result[f"batch_{batch}"] = {
            "prefill_s": prefill / batch,
            "ms_per_step_median": statistics.median(times),
            "ms_per_step_p99": sorted(times)[int(len(times) * 0.99)],
            "read_share": _read_share(socket),
        }
        print(backend, batch, result[f"batch_{batch}"], flush=True)
    if arguments.equal:
        options = {"tactic": {"threshold": 1.0}}
        prompts = [_prompt(200 * (i + 1) ** 2 % 7000 + 50, 1000 + i) for i in range(arguments.equal)]
        result["outputs"] = [_generate(engine, [prompt], 64, options)[0] for prompt in prompts]
    engine.shutdown()
    return result


def _generate(engine: Any, prompts: list[list[int]], tokens: int, options: dict[str, Any]) -> list[list[int]]:
    parameters = {
        "temperature": 0,
        "max_new_tokens": tokens,
        "ignore_eos": True,
        "sampling_seed": 1,
        "custom_params": options,
    }
    return [o["output_ids"] for o in engine.generate(input_ids=prompts, sampling_params=parameters)]


def _step_times(engine: Any, prompts: list[list[int]], steps: int, options: dict[str, Any]) -> list[float]:
    """Milliseconds between tokens of the last request to start, prefixes being cached."""
    parameters = {
        "temperature": 0,
        "max_new_tokens": steps + 20,
        "ignore_eos": True,
        "sampling_seed": 1,
        "custom_params": options,
    }
    stamps: dict[int, list[float]] = {}
    for output in engine.generate(input_ids=prompts, sampling_params=parameters, stream=True):
        stamps.setdefault(output.get("index", 0), []).append(time.monotonic())
    last = max(stamps.values(), key=lambda times: times[0])
    return [1e3 * (b - a) for a, b in pairwise(last[10:])]


def _read_share(socket: Any) -> float | None:
    """Positions read / positions, mean over layers, of the last request that decoded; None from a dense
    backend."""
    share = None
    while socket.poll(500):
        message = decode_to_worker(socket.recv_multipart()[1])
        if isinstance(message, RequestReport) and message.decode_steps > 1:
            share = statistics.mean(message.read_share_per_layer)
    return share


def _compare(results: dict[str, Any], arguments: argparse.Namespace) -> None:
    if not {"flashinfer", "tactic"} <= results.keys():
        return
    for batch in arguments.batches:
        dense, sparse = (results[b][f"batch_{batch}"]["ms_per_step_median"] for b in ("flashinfer", "tactic"))
        print(f"batch {batch}: dense {dense:.2f} ms, tactic {sparse:.2f} ms a step: {dense / sparse:.2f}x")
    if arguments.equal:
        pairs = list(zip(results["flashinfer"]["outputs"], results["tactic"]["outputs"], strict=True))
        results["equal"] = sum(a == b for a, b in pairs)
        first = [
            next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None) for a, b in pairs
        ]
        print(
            f"P = 1 equals dense on {results['equal']} of {len(pairs)} prompts; first differences at {first}"
        )


def _prompt(length: int, seed: int) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(3, 3000) for _ in range(length)]


def _random_model() -> Path:
    directory = Path(tempfile.mkdtemp())
    (directory / "config.json").write_text(json.dumps(LLAMA_8B))
    return directory


def _device() -> str:
    import torch

    return torch.cuda.get_device_name()


if __name__ == "__main__":
    os.environ.setdefault("SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK", "1")
    os.environ.setdefault("SGLANG_FORCE_COARSE_WAR_BARRIER", "1")
    main()
