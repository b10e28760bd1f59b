"""Thousands of random events on one engine: nothing may leak, break the index or change a token at P = 1.

    python tests/gpu/engine/soak.py --out soak.json

Requests join, end, are aborted and are retracted: by SGLang's switch for testing that, every so many passes,
and when the KV pool, which is too small for what is asked of it, is full. A clustering worker in a process
of its own refreshes what has been generated, in the engine's memory, and is killed at its work. All is drawn
from a seed; what happens between two draws depends on how fast the machine is.

- The index checks its integrity before every step, and ends the engine if it is broken.
- Answers that must be those of dense attention (P = 1, all read through the index, dense) are prefilled,
  which is dense attention, and compared token by token: `dense_check.py`.
- A request that fills the whole pool finds the same room for itself and its index before and after: no slot
  and no index memory is lost.

It exits with 1 if something is wrong, with 2 if not all happened that is to be seen. The JSON is written
every ten seconds.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "refresh"))
sys.path.insert(0, str(Path(__file__).parent))
from apparatus import Crew
from checkpoint import write_checkpoint
from dense_check import DenseCheck
from engines import SHAPES, Engine, device_name, prepare_environment, random_prompt

from tactic.workers.config import IndexConfig, RefreshConfig
from tactic.workers.refresh.messages import Gauges, Hello, RefreshJob, RequestReport

MOVES = {"join": 80.0, "abort": 20.0}
SHARED = 3
"""Prompts that requests have the beginning of in common, of each kind."""
LENGTHS = (1, 4, 16, 60, 200)
"""Tokens of an answer."""
EXACT: tuple[dict[str, Any], ...] = (
    {"threshold": 1.0},
    {"threshold": 1.0},
    # Nothing may be left out, but all is read through the index, where the estimator has its own kernel.
    {"threshold": 1 - 2**-24, "estimator": "exact"},
    {"mode": "dense"},
)
"""Requests whose answers are checked."""
SPARSE: tuple[dict[str, Any], ...] = (
    {"threshold": 0.3},
    {"threshold": 0.6},
    {"threshold": 0.9},
    {"threshold": 0.9, "measure": 7},
)
EVENTS = ("join", "length", "stop", "abort", "retracted", "refreshed", "kill")
NEEDED = ("length", "abort", "retracted", "refreshed", "kill", "read less")
TIE = {"cpu": 1e-3, "cuda": 0.5}
"""In fp32, and in bf16, where log-probabilities of dense attention in two batches differ by up to 0.25."""
REPORTED_S = 10.0
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
        crew: does its refresh jobs.
        check: compares answers with those of dense attention.
        seed: of all draws.
        vocabulary: token ids to draw from.
        running: most requests at a time.
        longest: most tokens of prompt and answer.
        kills: of the clustering worker, to a hundred other moves.
    """

    def __init__(
        self,
        engine: Engine,
        crew: Crew,
        check: DenseCheck,
        *,
        seed: int,
        vocabulary: int,
        running: int,
        longest: int,
        kills: float,
    ) -> None:
        self.engine = engine
        self.crew = crew
        self.check = check
        self.random = random.Random(seed)
        self.vocabulary = vocabulary
        self.running = running
        self.longest = longest
        self.steps = 0
        self._moves = MOVES | {"kill": kills}
        self.seen: Counter[str] = Counter()
        self.sums: Counter[str] = Counter()
        self.dropped: dict[str, int] = {}
        self._requests = 0
        self._gauges: Gauges | None = None
        self.kv_tokens = next(
            message.kv_tokens for message in engine.messages(30.0) if isinstance(message, Hello)
        )

    @property
    def events(self) -> int:
        """Of all kinds so far."""
        return sum(self.seen[kind] for kind in EVENTS)

    async def run(
        self, *, steps: int, events: int, seconds: float, tell: Callable[[], None]
    ) -> tuple[Probe, Probe]:
        """Traffic between two probes.

        Args:
            steps: that a request which is always there decodes at least.
            events: at least.
            seconds: after which it ends all the same.
            tell: called now and then.
        """
        before = await self._probe()
        end = time.monotonic() + seconds

        def going_on() -> bool:
            return (self.steps < steps or self.events < events) and time.monotonic() < end

        clock = asyncio.create_task(self._clock(going_on))
        tasks: dict[asyncio.Task[None], str] = {}
        told = time.monotonic()
        while not clock.done():
            (move,) = self.random.choices(list(self._moves), list(self._moves.values()))
            if move == "join" and len(tasks) < self.running - 1:
                self.seen["join"] += 1
                name = self._name()
                tasks[asyncio.create_task(self._request(name))] = name
            elif move == "abort" and tasks:
                name = tasks[self.random.choice(list(tasks))]
                self.engine.sglang.tokenizer_manager.abort_request(rid=name)
            elif move == "kill":
                self.crew.doom()
            await self._steps(self.random.randint(0, 3), clock)
            for task in [task for task in tasks if task.done()]:
                await task
                del tasks[task]
            self._count()
            if time.monotonic() - told > REPORTED_S:
                told = time.monotonic()
                tell()
        await clock
        await asyncio.gather(*tasks)
        self._count()
        while self.crew.busy:
            await asyncio.sleep(0.01)
            self._count()
        after = await self._probe()
        self._count()
        return before, after

    async def _clock(self, going_on: Callable[[], bool]) -> None:
        """Requests one after the other: what they decode are the engine's steps while they run."""
        while going_on():
            tokens = min(self.random.randint(200, 1000), self.longest // 2)
            await self._request(self._name(), tokens, clock=True)

    async def _steps(self, count: int, clock: "asyncio.Task[None]") -> None:
        """Until the clock has gone on by `count`."""
        until, deadline = self.steps + count, time.monotonic() + STALL_S
        while self.steps < until and not clock.done():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no step in {STALL_S:.0f} s, after {self.steps}")
            await asyncio.sleep(0.001)

    async def _request(self, name: str, tokens: int = 0, *, clock: bool = False) -> None:
        """One request to its end, whatever that is, and its check."""
        tokens = tokens or self.random.choice(LENGTHS)
        exact = self.random.random() < 0.5
        prompt = self._prompt(self.random.randint(16, self.longest - tokens), exact=exact)
        tactic = self.random.choice(EXACT if exact else SPARSE)
        answer: list[int] = []
        about = tactic | {"prompt": len(prompt), "asked_for": tokens}
        async for token in self._tokens(name, prompt, tokens, tactic, about):
            answer.append(token)
            self.steps += clock
        assert len(answer) <= tokens, f"{name} got {len(answer)} tokens of {tokens}"
        if exact:
            await self.check.check(name, prompt, answer, new_rid=self._name, about=about)

    async def _tokens(
        self, name: str, prompt: list[int], tokens: int, tactic: dict[str, Any], about: dict[str, Any]
    ) -> AsyncIterator[int]:
        count = 0
        async for output in self.engine.stream(prompt, tokens, tactic, rid=name):
            meta = output["meta_info"]
            # Of a request that is aborted while it waits, SGLang repeats the last token.
            for token in output["output_ids"][: meta["completion_tokens"] - count]:
                count += 1
                yield token
            if meta["finish_reason"]:
                reason = meta["finish_reason"]["type"]
                assert reason != "length" or count == tokens, f"{name}: {count} tokens, not {tokens}"
                self.seen[reason] += 1
                about["retracted"] = int(meta.get("num_retractions") or 0)
                about["reused"] = int(meta.get("cached_tokens") or 0)
                self.seen["retracted"] += about["retracted"]

    def _prompt(self, length: int, *, exact: bool) -> list[int]:
        """Some share a prefix, whose index they find.

        Those whose answers are checked share none with others: what another request has generated from the
        same prompt is found in the prefix cache, too, as sparse attention computed it.
        """
        if self.random.random() < 0.5:
            which = self.random.randrange(SHARED) + SHARED * exact
            return random_prompt(self.longest, which, self.vocabulary)[:length]
        return random_prompt(length, self.random.randrange(10**6) + 2 * SHARED, self.vocabulary)

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
        for reply in self.crew.replies():
            self.engine.reply(reply)
        self.seen["kill"] = self.crew.kills

    def _tally(self, message: object) -> None:
        if isinstance(message, Gauges):
            self._gauges = message
            self.seen["refreshed"] = message.refreshes_published
            self.dropped = message.refreshes_dropped
        elif isinstance(message, RefreshJob):
            self.crew.take(message)
        elif isinstance(message, RequestReport):
            self.seen["reports"] += 1
            self.sums["decode_steps"] += message.decode_steps
            self.sums["index_steps"] += message.decode_steps - message.dense_steps
            self.sums["tokens_clustered"] += message.tokens_clustered
            self.sums["tokens_index_reused"] += message.tokens_index_reused
            self.seen["read less"] += min(message.read_share_per_layer, default=1.0) < 0.999

    def result(self) -> dict[str, Any]:
        """What has happened so far."""
        return {
            "steps": self.steps,
            "events": self.events,
            "events_by_kind": {kind: self.seen[kind] for kind in EVENTS},
            "seen": dict(self.seen),
            "sums": dict(self.sums),
            "refreshes_dropped": self.dropped,
            "beside_dense": self.check.result(),
        }


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="small", help=f"directory, or one of {', '.join(SHAPES)}")
    parser.add_argument("--steps", type=int, default=10_000, help="at least")
    parser.add_argument("--events", type=int, default=5000, help="at least")
    parser.add_argument("--seconds", type=float, default=140.0, help="after which it ends all the same")
    parser.add_argument("--pool", type=int, default=16_000, help="tokens of the KV cache")
    parser.add_argument("--longest", type=int, default=3000, help="tokens of a request")
    parser.add_argument("--running", type=int, default=12, help="requests at a time")
    parser.add_argument("--segment", type=int, default=2048, help="positions of a segment of the index")
    parser.add_argument("--interval", type=int, default=64, help="steps between refreshes of a request")
    parser.add_argument(
        "--retract-every", type=int, default=50, help="passes from one retraction to the next; 0: if need be"
    )
    parser.add_argument(
        "--kills", type=float, default=0.3, help="of the clustering worker, to a hundred other moves"
    )
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    prepare_environment()
    if arguments.retract_every:
        os.environ["SGLANG_TEST_RETRACT"] = "true"
        os.environ["SGLANG_TEST_RETRACT_INTERVAL"] = str(arguments.retract_every)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    index = IndexConfig(
        check_integrity=True, min_clustered=256, segment_size=arguments.segment, threshold=0.9
    )
    refresh = RefreshConfig(
        placement="colocated" if device == "cuda" else "cpu",
        mps_percentage=0,
        duty=1.0,
        interval=arguments.interval,
    )
    result: dict[str, Any] = {
        "device": device_name(),
        "arguments": {name: str(value) for name, value in vars(arguments).items()},
        "complete": False,
    }

    def save() -> None:
        if arguments.out:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tactic-soak-") as folder, Crew(refresh) as crew:
        model = arguments.model
        if model in SHAPES:
            # SGLang's own random weights are next to nothing: no token would be wrong.
            model = str(write_checkpoint(Path(folder), SHAPES[model]))
        with Engine(
            model,
            "tactic",
            index=index,
            refresh=refresh,
            context_length=arguments.pool + 4096,
            max_total_tokens=arguments.pool,
            max_running_requests=arguments.running,
            chunked_prefill_size=2048,
            # Admits more than there will be room for.
            schedule_conservativeness=0.01,
        ) as engine:
            started = time.monotonic()
            result["start_s"] = started - began
            soak = Soak(
                engine,
                crew,
                DenseCheck(engine, TIE[device], arguments.vocabulary),
                seed=arguments.seed,
                vocabulary=arguments.vocabulary,
                running=arguments.running,
                longest=arguments.longest,
                kills=arguments.kills,
            )

            def tell() -> None:
                result.update(soak.result(), seconds=time.monotonic() - started)
                save()
                print(
                    f"{result['seconds']:.0f} s, {soak.steps} steps, {result['events_by_kind']}, "
                    f"{soak.check.seen['wrong']} of {soak.check.seen['tokens']} wrong",
                    flush=True,
                )

            before, after = engine.run(
                soak.run(steps=arguments.steps, events=arguments.events, seconds=arguments.seconds, tell=tell)
            )
            tell()
    # The engine is at an end if the index finds one.
    result |= {"integrity_violations": 0, "before": asdict(before), "after": asdict(after), "complete": True}
    save()
    print(json.dumps(result, indent=1))
    missing = [kind for kind in NEEDED if not soak.seen[kind]]
    if soak.steps < arguments.steps or soak.events < arguments.events:
        missing.append(f"{arguments.steps} steps and {arguments.events} events")
    if missing:
        print(f"did not happen, so that nothing is proved of it: {', '.join(missing)}")
    if before != after:
        print("LEAK: a request that fills the pool does not find what it found at the start")
    wrong = soak.check.seen["wrong"]
    if wrong:
        print(f"WRONG: {wrong} tokens are not those of dense attention")
    if before != after or wrong:
        return 1
    return 2 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
