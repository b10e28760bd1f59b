"""`make demo`: a long-context session from nothing to an answer, and back to nothing.

Starts an embedded Redis, a local Ray, a decode worker, a clustering worker and the front end on loopback;
streams a book with two planted facts into a session; asks for them; generates on until the index has been
refreshed and swapped under the running turn; asks the same with dense attention; prints the figures; stops
everything. The exit status is 0 only if all of it really happened.
"""

import argparse
import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import redis
from book import FACTS, excerpt, first_tokens, read_book
from report import Checks, comparison, console, mean_share, shares
from tiny_model import make_tiny_checkpoint

from tactic.service.client import (
    Answer,
    AttentionMode,
    SamplingOptions,
    TacticClient,
    TacticError,
    TacticOptions,
    WorkerKind,
    WorkerState,
)
from tactic.service.config import ConfigError, load_settings
from tactic.service.launch import Deployment, LaunchError, start

REFERENCE_MODEL = Path(__file__).parents[1] / "reference-model" / "checkpoint"
ANSWER_TOKENS = 48
# Room in the context for questions and answers, besides the story.
RESERVE_TOKENS = 1_024
# How much of the book is appended, unless --tokens says it: what is prefilled in about this time.
PREFILL_S = 75.0
PROBE_TOKENS = 4_096
# Prefill time grows faster than the length, by less than its square.
PREFILL_EXPONENT = 1.5
HEARTBEAT_S = 10.0

DENSE = AttentionMode.ATTENTION_MODE_DENSE
TACTIC = AttentionMode.ATTENTION_MODE_TACTIC
STORY = "Continue the story."


class Demo:
    """The main job against a running deployment."""

    def __init__(
        self, client: TacticClient, deployment: Deployment, args: argparse.Namespace, model: Path
    ) -> None:
        self.client = client
        self.deployment = deployment
        self.args = args
        self.model_path = model
        self.checks = Checks()

    async def run(self) -> None:
        """Does everything, prints it, and fills `checks`."""
        (model,) = await self.client.list_models()
        random = model.random_weights
        if random:
            say("the model has random weights: its answers are meaningless and are not judged")
        session = (await self.client.create_session(labels={"made-by": "demo"})).session_id
        tokens = await self._append_book(session, model.context_length)
        dense_session = (await self.client.fork_session(session)).session_id

        first = await self._ask(session, FACTS[0].question, f"computing the KV cache of {tokens:,} tokens")
        second = await self._ask(session, FACTS[1].question)
        story = await self._ask(session, STORY, "generating", tell=True)
        dense = await self._ask(dense_session, FACTS[0].question, mode=DENSE)
        dense_story = await self._ask(dense_session, STORY, "generating", mode=DENSE, tell=True)

        console.print()
        questions = {"first": first, "second": second, "first, dense": dense}
        console.print(comparison({**questions, "story": story, "story, dense": dense_story}))
        console.print("[dim]measuring the attention share slows the questions; the story runs without[/]")
        console.print(f"KV read per layer, first question: {shares(first)}")
        console.print(f"KV read per layer, story: {shares(story)}")
        console.print("\n[bold]What happened[/]")
        await self._check_deployment()
        self._check_turns(tokens, first, second, dense)
        await self._check_refreshes(story)
        for name, fact, answer in (
            ("first", FACTS[0], first),
            ("second", FACTS[1], second),
            ("dense", FACTS[0], dense),
        ):
            right = fact.value in answer.text
            said = f"{' '.join(answer.text.split())[:60]!r}"
            if random:
                console.print(f"  - {name} answer not judged: {said}", markup=False, soft_wrap=True)
            else:
                self.checks.check(f"{name} answer is right", right, said)
        for each in (session, dense_session):
            await self.client.delete_session(each)

    async def _append_book(self, session: str, context_length: int) -> int:
        book = read_book()
        tokens = self.args.tokens or await self._affordable(book, context_length)
        text = excerpt(book, tokens, self.model_path)
        say(f"streaming {len(text):,} of the book's {len(book):,} characters into session {session}")
        response = await self.client.append_context(
            session,
            text,
            on_progress=lambda done: say(
                f"{done.bytes_accepted:,} bytes, {done.tokens_appended:,} tokens are durable"
            ),
        )
        return response.tokens_appended

    async def _affordable(self, book: str, context_length: int) -> int:
        """Returns how many tokens of the book this machine prefills in PREFILL_S, by a trial."""
        say(f"trying how fast this machine reads: {PROBE_TOKENS:,} tokens")
        probe = self.client.complete(
            first_tokens(book, PROBE_TOKENS, self.model_path), sampling=SamplingOptions(max_tokens=1)
        )
        trial = await Answer.collect(probe)
        assert trial.ttft_s is not None
        tokens = PROBE_TOKENS * (PREFILL_S / trial.ttft_s) ** (1 / PREFILL_EXPONENT)
        pool = max(worker.stats.kv_tokens_total for worker in await self.client.list_workers())
        room = min(context_length, pool) - RESERVE_TOKENS - 2 * self.args.story_tokens
        return int(max(PROBE_TOKENS, min(tokens, room)))

    async def _ask(
        self,
        session: str,
        question: str,
        waiting_for: str = "thinking",
        mode: AttentionMode.ValueType = TACTIC,
        tell: bool = False,
    ) -> Answer:
        """Runs a turn, prints its text as it streams; `tell` generates on for several refresh intervals."""
        name = "dense" if mode == DENSE else "tactic"
        console.print(f"\n[bold]{question}[/] [dim]({name})[/]")
        sampling = SamplingOptions(
            temperature=0, max_tokens=self.args.story_tokens if tell else ANSWER_TOKENS, ignore_eos=tell
        )
        options = TacticOptions(mode=mode, threshold=self.args.threshold, measure=not tell)
        events = self.client.chat(question, session_id=session, sampling=sampling, tactic=options)
        async with heartbeat(waiting_for) as voice:
            answer = await Answer.collect(events, on_text=voice)
        print()
        return answer

    async def _check_deployment(self) -> None:
        with redis.Redis.from_url(self.deployment.state.redis_url) as store:
            aof = store.config_get("appendonly")["appendonly"]
        self.checks.check("embedded Redis keeps an append-only file", aof == "yes", f"appendonly {aof}")
        ready = [
            worker
            for worker in await self.client.list_workers()
            if worker.state == WorkerState.WORKER_STATE_READY
        ]
        names = ", ".join(f"{worker.worker_id} on {worker.device or 'cpu'}" for worker in ready)
        kinds = {worker.kind for worker in ready}
        both = {WorkerKind.WORKER_KIND_DECODE, WorkerKind.WORKER_KIND_CLUSTERING} <= kinds
        self.checks.check("decode and clustering workers are up", both, names)

    def _check_turns(self, tokens: int, first: Answer, second: Answer, dense: Answer) -> None:
        check = self.checks.check
        read, dense_read = mean_share(first), mean_share(dense)
        length = first.attention.context_length
        check("the whole text was in the context", length > tokens, f"{length:,} positions")
        check("tactic read part of the KV cache", 0 < read < 1, f"{read:.1%}")
        check("dense read all of it", dense_read > 0.999, f"{dense_read:.1%}")
        measured = first.attention
        reached = f"{measured.attention_share_mean:.3f} on average, for a target of {self.args.threshold}"
        check("the attention share was measured", measured.HasField("attention_share_mean"), reached)
        reused = second.usage.prefix_tokens_reused
        check("the second turn reused the prefix", reused >= tokens, f"{reused:,} tokens")
        index_reused, clustered = second.attention.tokens_index_reused, second.attention.tokens_clustered
        check(
            "and its clusters",
            index_reused > clustered,
            f"{index_reused:,} tokens reused, {clustered:,} clustered",
        )

    async def _check_refreshes(self, story: Answer) -> None:
        stats = story.attention
        wanted = self.args.story_tokens
        self.checks.check(
            "the story has its length", len(story.token_ids) == wanted, f"{len(story.token_ids)} tokens"
        )
        self.checks.check(
            "an index refresh was swapped in while it ran",
            stats.refreshes >= 1 and len(stats.index_versions) >= 2,
            f"{stats.refreshes} refreshes, versions {list(stats.index_versions)}",
        )
        jobs = sum(worker.stats.jobs_done for worker in await self.client.list_workers())
        self.checks.check("the clustering worker computed it", jobs >= 1, f"{jobs} jobs")


@contextlib.asynccontextmanager
async def heartbeat(what: str) -> AsyncIterator["Voice"]:
    """Says every few seconds what is being waited for, until the first text is printed."""
    voice = Voice()
    task = asyncio.create_task(_beat(what, voice))
    try:
        yield voice
    finally:
        task.cancel()


async def _beat(what: str, voice: "Voice") -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(HEARTBEAT_S)
        if not voice.spoke:
            say(f"{what}: {time.monotonic() - began:.0f} s")


class Voice:
    """Prints streamed text, and knows whether there was any."""

    def __init__(self) -> None:
        self.spoke = False

    def __call__(self, text: str) -> None:
        self.spoke = True
        # Random weights may well say control characters.
        sys.stdout.write("".join(char if char.isprintable() or char == "\n" else "·" for char in text))
        sys.stdout.flush()


def say(message: str) -> None:
    """Prints a step, with the seconds since the demo began."""
    console.print(f"[dim]{time.monotonic() - BEGAN:6.1f} s[/] {message}", soft_wrap=True)


BEGAN = time.monotonic()


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="A long-context session from nothing to an answer.")
    parser.add_argument(
        "--model",
        type=Path,
        help="checkpoint to serve (default: the reference model, else a tiny random one)",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=0,
        help="tokens of the book to append (default: as many as this machine reads in 75 s)",
    )
    parser.add_argument(
        "--threshold", type=float, default=0.9, help="target share P of the attention weight (default: 0.9)"
    )
    parser.add_argument(
        "--refresh-interval", type=int, default=64, help="decode steps between two refreshes (default: 64)"
    )
    parser.add_argument(
        "--story-tokens", type=int, default=256, help="tokens of the long generation (default: 256)"
    )
    parser.add_argument(
        "--state-dir", type=Path, help="where to keep data and logs (default: a temporary directory)"
    )
    return parser.parse_args()


def main() -> int:
    """Runs the demo and returns its exit status."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    args = parse_args()
    state_dir = args.state_dir or Path(tempfile.mkdtemp(prefix="tactic-demo-"))
    model = args.model or (
        REFERENCE_MODEL if REFERENCE_MODEL.is_dir() else make_tiny_checkpoint(state_dir / "tiny")
    )
    flags = {
        "state_dir": state_dir,
        "engine.model_path": model,
        "frontend.port": 0,
        "refresh.interval": args.refresh_interval,
        "index.threshold": args.threshold,
    }
    try:
        settings = load_settings(flags).settings
        with start(settings, progress=say) as deployment:
            say(f"serving {model} on {deployment.address}")
            failed = asyncio.run(_demo(deployment, args, model))
            say("stopping everything")
    except (ConfigError, LaunchError, TacticError) as error:
        failed = [str(error)]
    except KeyboardInterrupt:
        say("interrupted; everything is stopped")
        if args.state_dir is None:
            shutil.rmtree(state_dir)
        return 130
    for failure in failed:
        print(f"demo: FAILED: {failure}", file=sys.stderr)
    if failed:
        print(f"demo: logs are in {state_dir / 'logs'}", file=sys.stderr)
        return 1
    if args.state_dir is None:
        shutil.rmtree(state_dir)
    say("done: all of it happened")
    return 0


async def _demo(deployment: Deployment, args: argparse.Namespace, model: Path) -> list[str]:
    async with TacticClient(deployment.address) as client:
        demo = Demo(client, deployment, args, model)
        await demo.run()
        return demo.checks.failed


if __name__ == "__main__":
    sys.exit(main())
