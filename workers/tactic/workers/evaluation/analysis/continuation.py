"""Methods beside dense attention while a given text is continued."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.methods.base import Method
from tactic.workers.evaluation.methods.plain import Dense
from tactic.workers.evaluation.statistics import Reads

DENSE = Dense.name
FIGURES = (
    "Every token is given (teacher-forced) and attended as if it had just been generated. Perplexity and "
    "accuracy are of the text's next token; loss: nats a token above dense attention; as dense: how often "
    "the first choice is that of dense attention. Share and success are those of a query head's own "
    "selection, read is per KV head; late: in the last quarter."
)


def compare(
    context: Context, continuation: Sequence[int], methods: Mapping[str, Method], threshold: float
) -> Iterator[tuple[str, dict[str, float], Reads]]:
    """Runs dense attention and each method over a continuation, with the keys that it makes itself.

    Args:
        context: the prompt.
        continuation: what follows it.
        methods: by name.
        threshold: P that counts as a success.

    Yields:
        Name, means over the continuation, and the figures of its steps.
    """
    late = slice(3 * len(continuation) // 4, len(continuation))
    everything = {DENSE: Dense(), **methods}
    dense_loss = dense_choice = torch.empty(0)
    for name, method in everything.items():
        logits, reads = context.force(continuation, method)
        target = torch.tensor(continuation, device=logits.device)
        loss = torch.nn.functional.cross_entropy(logits[:-1], target, reduction="none")
        choice = logits[:-1].argmax(-1)
        if name == DENSE:
            dense_loss, dense_choice = loss, choice
        yield (
            name,
            {
                "perplexity": loss.mean().exp().item(),
                "loss": (loss - dense_loss).mean().item(),
                "accuracy": (choice == target).double().mean().item(),
                "as dense": (choice == dense_choice).double().mean().item(),
                "share": reads.own_share.mean().item(),
                "success": (reads.own_share >= threshold).double().mean().item(),
                "read": reads.read.double().mean().item(),
                "late loss": (loss - dense_loss)[late].mean().item(),
                "late share": reads.own_share[..., late].mean().item(),
                "late read": reads.read[..., late].double().mean().item(),
            },
            reads,
        )
