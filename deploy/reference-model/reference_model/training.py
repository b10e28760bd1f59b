"""The training loop."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from reference_model import checkpoint
from reference_model.data import Batch, loader
from reference_model.model import Llama, ModelConfig
from reference_model.optimizer import Optimizer
from reference_model.rows import ANSWER, TEXT
from reference_model.schedule import SCHEDULES, Schedule
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ATTENTION = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclass(frozen=True)
class Run:
    """What to train, from where and for how long."""

    data: Path
    out: Path
    schedule: str = "reference"
    resume: Path | None = None
    start: Path | None = None
    seconds: float = float("inf")
    workers: int = 0
    seed: int = 1
    report: int = 100
    attention: str = "cudnn"


def train(run: Run) -> Llama:
    """Trains until the schedule's end or until `seconds` have passed, and writes a resumable checkpoint."""
    began = time.monotonic()
    schedule = SCHEDULES[run.schedule]
    cuda = torch.cuda.is_available()
    torch.manual_seed(run.seed)
    attention: Callable[[], AbstractContextManager[Any]] = nullcontext
    if cuda:
        attention = partial(sdpa_kernel, ATTENTION[run.attention])
    model = Llama(ModelConfig(), compiled=cuda, attention=attention)
    model.to("cuda" if cuda else "cpu")
    optimizer = Optimizer(model)
    first = 0
    if run.resume:
        first = checkpoint.resume(run.resume, model, optimizer)
    elif run.start:
        checkpoint.resume(run.start, model, None)
    batches = iter(loader(run.data, schedule, run.seed, first, run.workers))
    report = _Report(schedule, run.report, began)
    step = first
    while step < schedule.steps and time.monotonic() - began < run.seconds:
        batch = next(batches)
        loss, losses = _losses(model, batch, schedule.text_weight)
        torch.autograd.backward(loss)
        optimizer.step(schedule.rate(step))
        report.add(step, batch, losses)
        step += 1
    checkpoint.save(run.out, model, optimizer, step)
    print(f"{step} of {schedule.steps} steps done; written to {run.out}", flush=True)
    return model


def _losses(model: Llama, batch: Batch, text_weight: float) -> tuple[Tensor, Tensor]:
    """The weighted loss, and the answers' losses by row as [B, 2]: their sum and their count."""
    device = model.model.norm.weight.device
    tokens, positions, classes = (
        part.to(device, non_blocking=True) for part in (batch.tokens, batch.positions, batch.classes)
    )
    losses = model.token_losses(tokens.long(), positions)
    kinds = classes[:, 1:].flatten()
    answer, text = (kinds == ANSWER).float(), (kinds == TEXT).float()
    # Both kinds count as means, so that few answers weigh as much as much text.
    loss = (losses * answer).sum() / answer.sum().clamp_min(1)
    loss = loss + text_weight * (losses * text).sum() / text.sum().clamp_min(1)
    with torch.no_grad():
        rows = len(batch.tasks)
        parts = [(losses * answer), answer, (losses * text), text]
        return loss, torch.stack([part.view(rows, -1).sum(1) for part in parts], 1)


class _Report:
    """Prints progress: losses by kind and task, speed and the time left."""

    def __init__(self, schedule: Schedule, every: int, began: float) -> None:
        self.schedule, self.every, self.began = schedule, every, began
        self.sums: dict[str, list[Tensor]] = {}
        self.tokens, self.since = 0, time.monotonic()

    def add(self, step: int, batch: Batch, losses: Tensor) -> None:
        stage = self.schedule.stage(step)
        self.sums.setdefault(stage.name, []).append(
            torch.zeros(len(stage.tasks), 4, device=losses.device).index_add_(
                0, batch.tasks.to(losses.device, non_blocking=True), losses
            )
        )
        self.tokens += stage.tokens
        last = step + 1 == self.schedule.steps or self.schedule.stage(step + 1) is not stage
        if last or (step + 1) % self.every == 0:
            self._print(step, stage.name, list(stage.tasks))

    def _print(self, step: int, stage: str, tasks: list[str]) -> None:
        total = torch.stack(self.sums.pop(stage)).sum(0).cpu()
        answers, counts, text, texts = total.unbind(1)
        now = time.monotonic()
        by_task = " ".join(
            f"{task}={answers[i] / counts[i]:.3f}" for i, task in enumerate(tasks) if counts[i] > 0
        )
        print(
            f"[{now - self.began:5.0f}s] {stage} step {step + 1}/{self.schedule.steps}"
            f" {self.tokens / (now - self.since) / 1e3:.0f}k tokens/s text={text.sum() / texts.sum():.3f}"
            f" answers={answers.sum() / counts.sum():.3f} | {by_task}",
            flush=True,
        )
        self.tokens, self.since = 0, now
