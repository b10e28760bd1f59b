"""A session of a million tokens on one GPU: prefill with its index, turns, a long generation with refreshes.

    python tests/gpu/refresh/million.py --out million.json
    python tests/gpu/refresh/million.py --context 128000 --whole-prefill --out session_128k.json

The shape is that of Qwen2.5-7B-1M, with as many of its 28 layers as the GPU has memory for, and structured
weights. Prefill computes no attention (`skip_attention.py`), which a million tokens would take minutes for;
`--whole-prefill` computes it. Each turn goes on after the last one's answer; the long generation is
refreshed by a clustering worker in a process of its own, in turns on the same GPU. Then the same engine
decodes the same session with dense attention (`dense_switch.py`), and a short one, whose step is one without
attention to speak of. The JSON is written after each stage, so that a run that is cut short keeps what it
has.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
sys.path.insert(0, str(Path(__file__).parent))
from apparatus import Actor, Line, refreshing
from calibrated import STATIC, Calibrated, layers_that_fit, with_layers
from dense_switch import switchable, use_dense_attention
from engines import SHAPES, Engine, device_name, greedy, prepare_environment, random_prompt
from skip_attention import attention_skipped
from timing import gaps, quantiles, reads, step_times

from tactic.workers.config import IndexConfig, RefreshConfig

SHORT = 64
"""Tokens of a prompt whose attention costs next to nothing."""
CHUNK = 16_384
TACTIC = {"threshold": 0.9}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="qwen2.5-7b", help=f"one of {', '.join(SHAPES)}")
    parser.add_argument("--context", type=int, default=1_000_000, help="tokens of the first prompt")
    parser.add_argument("--layers", type=int, default=0, help="of the model; default: as many as fit")
    parser.add_argument("--whole-prefill", action="store_true", help="with its attention")
    parser.add_argument("--message", type=int, default=2048, help="new tokens of the second turn")
    parser.add_argument("--tokens", type=int, default=1536, help="generated in the third turn")
    parser.add_argument("--interval", type=int, default=512, help="steps between refreshes")
    parser.add_argument("--duty", type=float, default=0.0, help="share of the time for the clustering worker")
    parser.add_argument("--measure-every", type=int, default=128, help="steps between measured shares")
    parser.add_argument("--steps", type=int, default=100, help="timed with either kind of attention")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU: figures mean nothing")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.dry_run:
        arguments.model, arguments.context, arguments.message = "small", 6000, 600
        arguments.tokens, arguments.interval, arguments.measure_every, arguments.steps = 96, 40, 8, 20
    prepare_environment()
    arguments.layers = arguments.layers or layers_that_fit(arguments.model, room(arguments))
    results: dict[str, Any] = {
        "device": device_name(),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "layers": arguments.layers,
        "prefill": "with attention" if arguments.whole_prefill else "without attention",
    }
    began = time.monotonic()
    for name, found in stages(arguments):
        results[name] = found
        results["seconds"] = time.monotonic() - began
        print(f"{results['seconds']:.0f} s, {name}: {json.dumps(found)}", flush=True)
        arguments.out.write_text(json.dumps(results, indent=1) + "\n")
        arguments.out.with_suffix(".md").write_text(table(results))
    print(table(results))


def room(arguments: argparse.Namespace) -> int:
    """Tokens of the KV cache: the session, what is timed on it, a short one, and a segment.

    Index memory goes with the KV cache's, and a segment that is refreshed is there twice for a while.
    """
    grown = arguments.message + arguments.interval + arguments.tokens + 2 * arguments.steps
    return int(arguments.context + grown + 2048 + IndexConfig().segment_size)


def stages(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Runs the session, and yields what each stage of it found."""
    on_gpu = torch.cuda.is_available()
    refresh = RefreshConfig(
        placement="colocated" if on_gpu else "cpu",
        mps_percentage=0,
        duty=arguments.duty,
        interval=arguments.interval,
    )
    limits: dict[str, Any] = {
        "context_length": room(arguments),
        "max_total_tokens": room(arguments),
        "max_running_requests": 2,
        "log_level": "info",
    }
    if on_gpu:
        limits |= {
            "cuda_graph_max_bs_decode": 1,
            "mem_fraction_static": STATIC,
            "chunked_prefill_size": CHUNK,
        }
    with ExitStack() as stack:
        # Its process starts while the engine's do.
        actor = stack.enter_context(Actor(refresh))
        weights = Calibrated.create(arguments.model, arguments.context, layers=arguments.layers)
        yield "weights", weights.about
        line = stack.enter_context(Line())
        stack.enter_context(switchable())
        if not arguments.whole_prefill:
            stack.enter_context(attention_skipped())
        began = time.monotonic()
        engine = stack.enter_context(
            Engine(
                arguments.model,
                "tactic",
                index=IndexConfig(min_clustered=1024),
                refresh=refresh,
                link=line.address,
                **with_layers(arguments.layers),
                **limits,
            )
        )
        weights.load(engine)
        yield "engine", {"start_s": time.monotonic() - began}
        session = Session(engine, line, weights.prompt(0))
        yield "turn_1", session.turn("turn-1", 16)
        session.say(weights.prompt(1)[: arguments.message])
        yield "turn_2", session.turn("turn-2", 16)
        with refreshing(line, actor) as jobs:
            # The worker compiles its kernels for its first job, which may take longer than a request does.
            session.say(weights.prompt(2)[:SHORT])
            session.turn("first-job", arguments.interval + 2)
            while not jobs:
                time.sleep(0.1)
            session.say(weights.prompt(3)[:SHORT])
            found = session.turn("turn-3", arguments.tokens, measure=arguments.measure_every)
        yield "generation", found | {"job_s": jobs[1:], "interval": arguments.interval} | session.index()
        yield from both(engine, session.tokens, arguments.steps)


class Session:
    """Turns of one conversation, each on all that came before it.

    Args:
        engine: with the tactic backend.
        line: what it says.
        tokens: of the first prompt.
    """

    def __init__(self, engine: Engine, line: Line, tokens: list[int]) -> None:
        self.tokens = list(tokens)
        self._engine = engine
        self._line = line
        self._new = len(tokens)
        self._clustered = 0

    def say(self, message: list[int]) -> None:
        """What comes after the last answer."""
        self.tokens += message
        self._new += len(message)

    def turn(self, name: str, tokens: int, **tactic: Any) -> dict[str, Any]:
        """Has an answer generated; what it took, and what became of the index meanwhile."""
        began = time.monotonic()
        stamps, answer = [], []
        for output in self._engine.sglang.generate(
            input_ids=self.tokens, sampling_params=greedy(tokens, TACTIC | tactic), stream=True, rid=name
        ):
            stamps.append((time.monotonic(), len(output["output_ids"])))
            answer += output["output_ids"]
        report = self._line.report(name)
        covered, new = report.tokens_index_reused + report.tokens_clustered, self._new
        again = self._clustered - report.tokens_index_reused
        self._clustered, self._new = covered, len(answer)
        self.tokens += answer
        return {
            "context": len(self.tokens) - len(answer),
            "new_tokens": new,
            "tokens_clustered": report.tokens_clustered,
            "tokens_index_reused": report.tokens_index_reused,
            # Those that had clusters after the turn before, and were not found in the index.
            "tokens_clustered_again": again,
            "first_token_s": stamps[0][0] - began,
            "tokens": len(answer),
            "refreshes": report.refreshes,
            "refreshes_dropped": report.refreshes_dropped,
            "index_versions": report.index_versions,
            "attention_share_mean": report.attention_share_mean,
            "attention_share_lowest_decile": report.attention_share_p10,
            **reads([report]),
            **quantiles(gaps(stamps)),
        }

    def index(self) -> dict[str, Any]:
        """The engine's counters since its start."""
        gauges = self._line.gauges
        if gauges is None:
            return {}
        return {
            "all_tokens_clustered": gauges.tokens_clustered,
            "all_tokens_index_reused": gauges.tokens_index_reused,
            "index_bytes": gauges.index_bytes_used,
            "published_in_place": gauges.refreshes_in_place,
            "dropped": gauges.refreshes_dropped,
        }


def both(engine: Engine, tokens: list[int], steps: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps on the session and on a short prompt: through the index, then with dense attention."""
    short = random_prompt(SHORT, 1)

    def run() -> dict[str, Any]:
        long = quantiles(step_times(engine, [tokens], steps, TACTIC))
        return long | {"short_ms": statistics.median(step_times(engine, [short], steps, TACTIC))}

    tactic = run()
    yield "tactic", tactic
    began = time.monotonic()
    use_dense_attention(engine)
    switched = time.monotonic() - began
    dense = run()
    yield "dense", dense | {"switch_s": switched}
    yield "beside_dense", compare(dense, tactic)


def compare(dense: dict[str, float], tactic: dict[str, float]) -> dict[str, float]:
    """Ratios end to end and of the attention: what a step takes beyond a dense one on a short prompt."""
    step = {"dense": dense["ms_per_step_median"], "tactic": tactic["ms_per_step_median"]}
    attention = {name: ms - dense["short_ms"] for name, ms in step.items()}
    found = {"ratio": step["dense"] / step["tactic"], "without_attention_ms": dense["short_ms"]}
    for name, ms in attention.items():
        found |= {f"{name}_attention_ms": ms, f"{name}_attention_share_of_step": ms / step[name]}
    if attention["tactic"] > 0:
        found["attention_ratio"] = attention["dense"] / attention["tactic"]
    return found


def table(results: dict[str, Any]) -> str:
    """The results for people, in Markdown."""
    lines = [
        f"{results['device']}, {results['arguments']['model']} with {results['layers']} layers, "
        f"{int(results['arguments']['context']):,} tokens, prefill {results['prefill']}.\n",
        "| | |",
        "|---|---|",
    ]
    for name in ("turn_1", "turn_2", "generation"):
        if name in results:
            turn = results[name]
            lines.append(
                f"| {name}: new tokens; clustered, again, found in the index | {turn['new_tokens']:,}; "
                f"{turn['tokens_clustered']:,}, {turn['tokens_clustered_again']:,}, "
                f"{turn['tokens_index_reused']:,} |"
            )
            lines.append(f"| {name}: first token | {turn['first_token_s']:.2f} s |")
    if "generation" in results:
        turn = results["generation"]
        lines += [
            f"| generation: tokens, refreshes, ms a token | {turn['tokens']:,}, {turn['refreshes']}, "
            f"{turn['ms_per_step_median']:.2f} (p99 {turn['ms_per_step_p99']:.2f}) |",
            f"| generation: attention share, read | {turn['attention_share_mean'] or 0:.3f} "
            f"(lowest decile {turn['attention_share_lowest_decile'] or 0:.3f}), {turn['read_share']:.1%} |",
        ]
    for name in ("tactic", "dense"):
        if name in results:
            lines.append(f"| {name}: ms a token | {results[name]['ms_per_step_median']:.2f} |")
    if "beside_dense" in results:
        found = results["beside_dense"]
        lines += [
            f"| dense over tactic, end to end | {found['ratio']:.2f} |",
            f"| the same, attention | {found.get('attention_ratio', float('nan')):.1f} |",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
