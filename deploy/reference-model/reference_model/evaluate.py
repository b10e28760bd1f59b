"""What a model recalls, by task and context length, and its perplexity by depth, on the held-out book.

An answer counts as right if every one of its tokens, the end token included, is the model's first choice
after the right ones before it: that is, if greedy decoding writes exactly the expected answer. `turns`
questions share one context; the right answers to the earlier ones stand before the later ones.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import exp
from pathlib import Path
from random import Random

import torch
from reference_model import corpus
from reference_model.model import Llama
from reference_model.rows import ANSWER, Row, RowBuilder
from reference_model.tokenizer import Codec
from torch import Tensor

DEPTHS = (0, 256, 1024, 4096, 16384, 32768, 65536, 131072)


class Evaluator:
    """Runs evaluations of one model on the held-out book of a prepared data folder."""

    def __init__(self, model: Llama, data: Path, dtype: torch.dtype) -> None:
        codec = Codec.load(data / "tokenizer.json")
        self.builder = RowBuilder(corpus.load(data, codec, held_out=True), codec)
        self.model, self.dtype = model, dtype
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def accuracy(
        self, task: str, length: int, rows: int, *, turns: int = 4, seed: int = 1000
    ) -> tuple[int, int]:
        """Right and asked questions over `rows` contexts of `length` tokens."""
        right = asked = 0
        built = [
            self.builder.build(
                Random(f"{seed}/{task}/{length}/{row}"), task, length, layout="system", turns=turns
            )
            for row in range(rows)
        ]
        size = max(1, 65536 // length)
        for first in range(0, rows, size):
            for correct in self._answers(built[first : first + size]):
                asked += 1
                right += correct
        return right, asked

    def _answers(self, rows: list[Row]) -> Iterator[bool]:
        tokens, positions, classes = _stack(rows, self.device)
        hidden = self.model.hidden(tokens[:, :-1], positions[:, :-1], self.dtype)
        places = (classes[:, 1:] == ANSWER).flatten().nonzero().squeeze(-1)
        hits = self.model.logits(hidden[places]).argmax(-1) == tokens[:, 1:].flatten()[places]
        spans = torch.cumsum(torch.diff(places, prepend=places[:1]) > 1, 0).tolist()
        verdicts: dict[int, bool] = {}
        for span, hit in zip(spans, hits.tolist(), strict=True):
            verdicts[span] = verdicts.get(span, True) and hit
        yield from verdicts.values()

    @torch.no_grad()
    def perplexity(self, length: int, rows: int, *, seed: int = 1000) -> dict[str, float]:
        """Perplexity per token of plain text, by how much of it stands before."""
        total = torch.zeros(length, device=self.device)
        for row in range(rows):
            built = self.builder.build(Random(f"{seed}/text/{length}/{row}"), "text", length)
            tokens, positions, _ = _stack([built], self.device)
            total += self.model.token_losses(tokens, positions, self.dtype)
        edges = [edge for edge in DEPTHS if edge <= length]
        return {f"{low}-{high}": exp(float(total[low:high].mean()) / rows) for low, high in pairwise(edges)}


def _stack(rows: list[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and classes of rows of one length, each [B, T+1]."""
    return (
        torch.stack([torch.from_numpy(row.tokens.astype("int64")) for row in rows]).to(device),
        torch.stack([torch.from_numpy(row.positions) for row in rows]).to(device),
        torch.stack([torch.from_numpy(row.classes) for row in rows]).to(device),
    )
