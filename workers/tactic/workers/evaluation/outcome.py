"""One method on one sample: how it answered, and what it read for that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.figures import Figures
from tactic.workers.evaluation.index import BuildIndex
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.methods.plain import Dense
from tactic.workers.evaluation.methods.registry import BUDGETED, make_method
from tactic.workers.evaluation.methods.tactic import Tactic
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.prompt import Sample


@dataclass(frozen=True)
class Outcome:
    """One method at one threshold on one sample.

    Attributes:
        task: name.
        context: length asked for, in tokens.
        seed: of the sample.
        method: label.
        threshold: P; None for dense.
        score: of the answer, 0 … 1; None for perplexity.
        loss: mean negative log-likelihood per token in nats; None for questions.
        answer: decoded text.
        figures: of what was read.
    """

    task: str
    context: int
    seed: int
    method: str
    threshold: float | None
    score: float | None
    loss: float | None
    answer: str
    figures: Figures


@dataclass(frozen=True)
class Plan:
    """What is run on every sample.

    Attributes:
        methods: names out of the registry; dense always runs.
        thresholds: P of each run.
        budget: positions per KV head and step for methods with a fixed number; None: as many as the first
            Tactic method of `methods` read on the same sample, layer by layer.
        index: how Tactic clusters.
        measured: whether the oracle's positions are counted beside Tactic's.
    """

    methods: Sequence[str]
    thresholds: Sequence[float]
    budget: int | None = None
    index: BuildIndex | None = None
    measured: bool = True

    def check(self) -> None:
        """Refuses what can't be run.

        Raises:
            EvaluationError: a method is unknown, or its budget is.
        """
        for name in self.methods:
            make_method(name, self.thresholds[0], budgets=[1])
        matched = [name for name in self.methods if name in BUDGETED]
        if matched and self.budget is None and not any(name.startswith("tactic") for name in self.methods):
            raise EvaluationError(
                f"--methods {' '.join(matched)}: their budget is what a tactic method reads; add one to "
                "--methods, or give --budget"
            )

    def run(self, checkpoint: Checkpoint, sample: Sample, *, context: int, seed: int) -> Iterator[Outcome]:
        """Prefills a sample once and answers it with every method at every threshold, dense first."""
        state = checkpoint.prefill(sample.prompt, room=sample.limit)
        runner = _Runner(self, checkpoint, state, sample, context, seed)
        yield runner.run(make_method(Dense.name, 1), None)
        # Budgets come from a Tactic run, so those that need one stand last.
        ordered = sorted(
            (name for name in self.methods if name != Dense.name), key=lambda name: name in BUDGETED
        )
        for threshold in self.thresholds:
            budgets = [self.budget] * len(state.layers) if self.budget else []
            for name in ordered:
                method = make_method(name, threshold, budgets=budgets, index=self.index)
                yield runner.run(method, threshold)
                if not budgets and isinstance(method, Tactic):
                    budgets = runner.read_by_layer


class _Runner:
    def __init__(
        self, plan: Plan, checkpoint: Checkpoint, state: Context, sample: Sample, context: int, seed: int
    ) -> None:
        self.plan = plan
        self.checkpoint = checkpoint
        self.state = state
        self.sample = sample
        self.context = context
        self.seed = seed
        self.guess = sample.gold + checkpoint.stop_tokens[:1]
        self.read_by_layer: list[int] = []

    def run(self, method: Method, threshold: float | None) -> Outcome:
        measure = threshold if self.plan.measured and isinstance(method, Tactic) else None
        score = loss = None
        text = ""
        if self.sample.episode is None:
            gold = self.sample.gold
            logits, reads = self.state.force(gold[:-1], method, measure=measure)
            target = torch.tensor(gold, device=logits.device)
            loss = float(torch.nn.functional.cross_entropy(logits, target))
        else:
            stop = self.checkpoint.stop_tokens
            limit = self.sample.limit
            answer = self.state.decode(method, limit=limit, stop=stop, guess=self.guess, measure=measure)
            reads = answer.reads
            # Methods mostly agree: what the last one said is the best guess.
            self.guess = [*answer.tokens, *stop[:1]]
            text = self.checkpoint.tokenizer.decode(answer.tokens, skip_special_tokens=True)
            score = self.sample.episode.score(text)
        self.read_by_layer = reads.read.float().mean((1, 2)).round().int().tolist()
        return Outcome(
            task=self.sample.task,
            context=self.context,
            seed=self.seed,
            method=method.label,
            threshold=threshold,
            score=score,
            loss=loss,
            answer=text,
            figures=Figures.of(reads, threshold or 1.0, measured=measure is not None),
        )
