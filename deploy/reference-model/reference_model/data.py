"""Batches as a pure function of (seed, step): resuming, and any number of workers, give the same data."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from reference_model import corpus
from reference_model.rows import RowBuilder
from reference_model.schedule import Schedule
from reference_model.tokenizer import Codec
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


@dataclass
class Batch:
    """Tokens and positions [B, T+1] int32, classes [B, T+1] uint8, and the index of each row's task [B]."""

    tokens: Tensor
    positions: Tensor
    classes: Tensor
    tasks: Tensor

    def pin_memory(self) -> "Batch":
        return Batch(*(part.pin_memory() for part in (self.tokens, self.positions, self.classes, self.tasks)))


@dataclass
class Batches(Dataset[Batch]):
    """One item a training step."""

    data: Path
    schedule: Schedule
    seed: int

    @cached_property
    def builder(self) -> RowBuilder:
        codec = Codec.load(self.data / "tokenizer.json")
        return RowBuilder(corpus.load(self.data, codec), codec)

    def __len__(self) -> int:
        return self.schedule.steps

    def __getitem__(self, step: int) -> Batch:
        stage = self.schedule.stage(step)
        rng = Random(f"{self.seed}/{step}")
        length = rng.choices(*_weighted(stage.lengths))[0]
        tasks = rng.choices(*_weighted(stage.tasks), k=stage.tokens // length)
        names = list(stage.tasks)
        rows = [self.builder.build(rng, task, length, skip=stage.skip) for task in tasks]
        return Batch(
            torch.from_numpy(np.stack([row.tokens for row in rows]).astype(np.int32)),
            torch.from_numpy(np.stack([row.positions for row in rows])),
            torch.from_numpy(np.stack([row.classes for row in rows])),
            torch.tensor([names.index(task) for task in tasks]),
        )


def loader(data: Path, schedule: Schedule, seed: int, first_step: int, workers: int) -> "DataLoader[Batch]":
    """The batches from `first_step` on, built ahead by `workers` processes."""
    batches = Batches(data, schedule, seed)
    _ = batches.builder  # Loaded before the workers fork, which then share it.
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(first_step, schedule.steps),
        num_workers=workers,
        prefetch_factor=6 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _weighted(table: dict[Any, Any]) -> tuple[list[Any], list[Any]]:
    return list(table), list(table.values())
