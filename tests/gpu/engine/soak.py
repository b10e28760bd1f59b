"""Thousands of decode steps with requests that join, end, are aborted and are retracted: nothing may leak.

    python tests/gpu/engine/soak.py --steps 10000 --out soak.json

The KV pool is too small for what is asked of it, so that requests wait, are retracted and come back. The
index checks its integrity before every step, and ends the engine if it is broken. A request that fills the
whole pool finds the same room for itself and its index before and after: no slot and no index memory is lost.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from engines import SHAPES, Engine, device_name, prepare_environment, random_prompt

from tactic.workers.config import IndexConfig
from tactic.workers.refresh.messages import Gauges, Hello, RequestReport

MOVES = {"join": 6, "abort": 1}
THRESHOLDS = (0.3, 0.6, 0.9, 0.9, 1.0)
STALL_S = 120.0
"""Longest without a token."""


@dataclass(frozen=True)
class Probe:
    """What a request that fills the pool leaves behind; the same at the start and at the end.

    Attributes:
        kv_tokens_used: slots of the KV pool, at its end.
        tokens_clustered: of its prompt; all unused segments made room.
        failures: segments for which there was no room.
    """

    kv_tokens_used: int
    tokens_clustered: int
    failures: int


class Soak:
    """Traffic on one engine.

    Args:
        engine: with the tactic backend.
        seed: of all draws.
        vocabulary: token ids to draw from.
        running: most requests at a time.
        longest: most tokens of prompt and answer.
    """

    def __init__(self, engine: Engine, *, seed: int, vocabulary: int, running: int, longest: int) -> None:
        self.engine = engine
        self.random = random.Random(seed)
        self.vocabulary = vocabulary
        self.running = running
        self.longest = longest
        self.steps = 0
        self.seen: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self._requests = 0
        self._gauges: Gauges | None = None
        self.kv_tokens = next(
            message.kv_tokens for message in engine.messages(30.0) if isinstance(message, Hello)
        )

    async def run(self, steps: int) -> tuple[Probe, Probe]:
        """Traffic until a request that is always there has decoded so many tokens, between two probes."""
        before = await self._probe()
        clock = asyncio.create_task(self._clock(steps))
        tasks: dict[asyncio.Task[None], str] = {}
        began = reported = time.monotonic()
        while not clock.done():
            (move,) = self.random.choices(list(MOVES), list(MOVES.values()))
            if move == "join" and len(tasks) < self.running - 1:
                name = self._name()
                tasks[asyncio.create_task(self._request(name))] = name
            elif move == "abort" and tasks:
                name = tasks[self.random.choice(list(tasks))]
                self.engine.sglang.tokenizer_manager.abort_request(rid=name)
            await self._steps(self.random.randint(0, 12), clock)
            for task in [task for task in tasks if task.done()]:
                await task
                del tasks[task]
            self._count()
            if time.monotonic() - reported > 10:
                reported = time.monotonic()
                rate = self.steps / (reported - began)
                print(f"{self.steps} of {steps} steps, {rate:.0f} a second, {dict(self.seen)}", flush=True)
        await clock
        await asyncio.gather(*tasks)
        after = await self._probe()
        self._count()
        return before, after

    async def _clock(self, steps: int) -> None:
        """Requests one after the other: what they decode are the engine's steps while they run."""
        while self.steps < steps:
            tokens = min(steps - self.steps, self.random.randint(200, 1000), self.longest // 2)
            prompt = self._prompt(self.random.randint(64, self.longest - tokens))
            async for _ in self._tokens(self._name(), prompt, tokens):
                self.steps += 1

    async def _steps(self, count: int, clock: "asyncio.Task[None]") -> None:
        """Until the clock has gone on by `count`."""
        until, deadline = self.steps + count, time.monotonic() + STALL_S
        while self.steps < until and not clock.done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no step in {STALL_S:.0f} s, after {self.steps}")
            await asyncio.sleep(0.001)

    async def _request(self, name: str) -> None:
        """One request to its end, whatever that is."""
        tokens = self.random.choice([1, 30, 200, 400])
        prompt = self._prompt(self.random.randint(16, self.longest - tokens))
        count = 0
        async for _ in self._tokens(name, prompt, tokens):
            count += 1
        assert count <= tokens, f"{name} got {count} tokens of {tokens}"

    async def _tokens(self, name: str, prompt: list[int], tokens: int) -> Any:
        tactic = {"threshold": self.random.choice(THRESHOLDS)}
        if self.random.random() < 0.1:
            tactic = {"mode": "dense"}
        count = 0
        async for output in self.engine.stream(prompt, tokens, tactic, rid=name):
            for _ in output["output_ids"]:
                count += 1
                yield count
            meta = output["meta_info"]
            if meta["finish_reason"]:
                reason = meta["finish_reason"]["type"]
                assert reason != "length" or count == tokens, f"{name}: {count} tokens, not {tokens}"
                self.seen[reason] += 1
                self.seen["retracted"] += int(meta.get("num_retractions") or 0)

    def _prompt(self, length: int) -> list[int]:
        """Some share a prefix, whose index they find."""
        if self.random.random() < 0.5:
            return random_prompt(self.longest, self.random.randrange(3), self.vocabulary)[:length]
        return random_prompt(length, self.random.randrange(10**6) + 3, self.vocabulary)

    def _name(self) -> str:
        """Of one length: SGLang aborts by prefix."""
        self._requests += 1
        return f"{self._requests:08d}"

    async def _probe(self) -> Probe:
        """Fills the pool with one request, when nothing else runs."""
        flushed = await self.engine.sglang.tokenizer_manager.flush_cache(timeout_s=30.0)
        assert flushed.success, f"the cache could not be flushed: {flushed.message}"
        self._count()
        failures = self._gauges.allocation_failures if self._gauges else 0
        name = self._name()
        prompt = random_prompt(self.kv_tokens - 64, 1, self.vocabulary)
        async for output in self.engine.stream(prompt, 16, {"threshold": 0.5}, rid=name):
            assert (output["meta_info"]["finish_reason"] or {}).get("type") != "abort", output["meta_info"]
        clustered, reported = 0, False
        while not reported:
            messages = self.engine.messages(10.0)
            assert messages, "no report of the request that fills the pool"
            for message in messages:
                self._tally(message)
                if isinstance(message, RequestReport) and message.request_id == name:
                    reported, clustered = True, message.tokens_clustered
        # The gauges follow a report.
        for message in self.engine.messages(2.0):
            self._tally(message)
        gauges = self._gauges
        assert gauges is not None
        return Probe(gauges.kv_tokens_used, clustered, gauges.allocation_failures - failures)

    def _count(self) -> None:
        for message in self.engine.messages():
            self._tally(message)

    def _tally(self, message: object) -> None:
        if isinstance(message, Gauges):
            self._gauges = message
        elif isinstance(message, RequestReport):
            self.seen["reports"] += 1
            self.sums["decode_steps"] += message.decode_steps
            self.sums["index_steps"] += message.decode_steps - message.dense_steps
            self.sums["tokens_clustered"] += message.tokens_clustered
            self.sums["tokens_index_reused"] += message.tokens_index_reused
            self.seen["read less"] += min(message.read_share_per_layer, default=1.0) < 0.999


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", help=f"directory, or one of {', '.join(SHAPES)}")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--pool", type=int, default=24_000, help="tokens of the KV cache")
    parser.add_argument("--longest", type=int, default=6000, help="tokens of a request")
    parser.add_argument("--running", type=int, default=8, help="requests at a time")
    parser.add_argument("--segment", type=int, default=2048, help="positions of a segment of the index")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    prepare_environment()
    index = IndexConfig(
        check_integrity=True, min_clustered=256, segment_size=arguments.segment, threshold=0.9
    )
    began = time.monotonic()
    with Engine(
        arguments.model,
        "tactic",
        index=index,
        context_length=arguments.pool + 4096,
        max_total_tokens=arguments.pool,
        max_running_requests=arguments.running,
        chunked_prefill_size=2048,
        # Admits more than there will be room for.
        schedule_conservativeness=0.01,
    ) as engine:
        started = time.monotonic()
        soak = Soak(
            engine,
            seed=arguments.seed,
            vocabulary=arguments.vocabulary,
            running=arguments.running,
            longest=arguments.longest,
        )
        before, after = engine.run(soak.run(arguments.steps))
        seconds = time.monotonic() - started
    result = {
        "device": device_name(),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "start_s": started - began,
        "seconds": seconds,
        "steps": soak.steps,
        "before": asdict(before),
        "after": asdict(after),
        "seen": dict(soak.seen),
        "sums": dict(soak.sums),
    }
    print(json.dumps(result, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    missing = [kind for kind in ("length", "abort", "retracted", "read less") if not soak.seen[kind]]
    if missing:
        print(f"did not happen, so that nothing is proved of it: {', '.join(missing)}; ask for more --steps")
    if before != after:
        print("LEAK: a request that fills the pool does not find what it found at the start")
    if before != after:
        return 1
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
