"""Layers whose keys and queries are the reference model's, after a context of needles in a book."""

from pathlib import Path

import torch
from torch import Tensor
from workload import Layer, Workload, logits_of, make_index, make_table, segment_lengths

from tactic.workers.evaluation.layer import Step
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.haystack import Haystack
from tactic.workers.evaluation.tasks.prompt import PromptBuilder

MODEL = Path(__file__).parents[3] / "deploy" / "reference-model" / "checkpoint"
TASK = "niah_multiquery"
SHARE = 0.9


def capture(
    books: Path, *, context: int, contexts: int = 3, cluster_size: int = 32, tail: int = 1024
) -> Workload:
    """The first decode step after each of some contexts; all layers' heads stand side by side as one layer.

    Args:
        books: text file or folder of *.txt.xz.
        context: tokens.
        contexts: how many: layers of the workload.
        cluster_size: c.
        tail: last positions, which are not clustered.
    """
    checkpoint = Checkpoint.load(MODEL, device="cuda", dtype="bfloat16")
    haystack = Haystack.load(books, checkpoint.tokenizer, tokens=context)
    builder = PromptBuilder(checkpoint.tokenizer, haystack, "reference")
    taken: list[tuple[Tensor, Tensor, Tensor]] = []
    for seed in range(contexts):
        sample = builder.sample(TASK, context, seed=seed, number=0)
        steps = checkpoint.prefill(sample.prompt, room=1).capture(sample.gold[:1])
        taken.append(_side_by_side(steps))
    length = min(keys.shape[0] for _, keys, _ in taken)
    lengths = segment_lengths(length - tail)
    table = make_table(1, lengths, "cuda")
    slots = torch.randperm(length, device="cuda", dtype=torch.int32)
    layers, build_ms, oracle = [], 0.0, 0.0
    for q, keys, values in taken:
        pools = []
        for rows in (keys, values):
            pool = torch.empty(length, *rows.shape[1:], dtype=rows.dtype, device="cuda")
            # Of a longer context, the first positions after the sinks are left out.
            pool[slots.long()] = torch.cat([rows[:16], rows[len(rows) - length + 16 :]])
            pools.append(pool)
        arena, build_ms = make_index(table, pools[0], slots[None], lengths, cluster_size)
        layers.append(Layer(q, *pools, arena))
        weights = (
            logits_of(layers[-1].q[0], pools[0], slots, 1.0).softmax(-1).sort(-1, descending=True).values
        )
        oracle += float(((weights.cumsum(-1) < SHARE).sum(-1) + 1).float().mean()) / contexts
    return Workload(
        layers,
        slots[None],
        torch.zeros(1, dtype=torch.int32, device="cuda"),
        torch.full((1,), length, dtype=torch.int32, device="cuda"),
        table,
        1.0,  # queries are scaled
        build_ms,
        oracle,
        f"captured: reference model, {TASK}, {layers[0].k_pool.shape[1]} KV heads, d 64",
    )


def _side_by_side(steps: list[Step]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries `[1, L * Hq, d]`, keys and values `[n, L * H, d]` of all layers."""
    end = steps[0].first + 1
    q = torch.cat([step.query[:, :, 0].flatten(0, 1) for step in steps])[None]
    keys, values = (
        torch.cat([getattr(step, name)[:end] for step in steps], 1) for name in ("keys", "values")
    )
    return q.to(keys.dtype), keys.contiguous(), values.contiguous()
