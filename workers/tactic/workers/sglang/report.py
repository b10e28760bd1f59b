"""What the attention does for each request, counted where it happens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tactic.workers.refresh.messages import RequestReport

QUANTILE_VALUES = 2**20


@dataclass
class RequestMonitor:
    """Counters of one bound request.

    Attributes:
        request_id: the engine's id.
        measured_every: decode steps from one whose attention share is measured to the next; 0 measures none.
    """

    request_id: str
    measured_every: int = 0
    decode_steps: int = 0
    dense_steps: int = 0
    context_length: int = 0
    refreshes: int = 0
    refreshes_dropped: int = 0
    tokens_reused: int = 0
    tokens_clustered: int = 0
    versions: list[int] = field(default_factory=list)
    shares: list[torch.Tensor] = field(default_factory=list)

    def step(self, context_length: int, version: int, *, dense: bool) -> None:
        """A decode step begins."""
        self.decode_steps += 1
        self.dense_steps += dense
        self.context_length = context_length
        if not self.versions or self.versions[-1] != version:
            self.versions.append(version)

    @property
    def measured(self) -> bool:
        """Whether the attention share of the present step is measured."""
        return self.measured_every > 0 and self.decode_steps % self.measured_every == 0

    def report(self, rank: int, read_shares: torch.Tensor) -> RequestReport:
        """The final word on the request; `read_shares` [L] are the sums over its steps."""
        share = torch.cat(self.shares) if self.shares else None
        return RequestReport(
            rank=rank,
            request_id=self.request_id,
            decode_steps=self.decode_steps,
            dense_steps=self.dense_steps,
            context_length=self.context_length,
            read_share_per_layer=(read_shares / max(1, self.decode_steps)).tolist(),
            attention_share_mean=None if share is None else float(share.mean()),
            attention_share_p10=None if share is None else _lowest_decile(share),
            index_versions=self.versions,
            refreshes=self.refreshes,
            refreshes_dropped=self.refreshes_dropped,
            tokens_index_reused=self.tokens_reused,
            tokens_clustered=self.tokens_clustered,
        )


def _lowest_decile(values: torch.Tensor) -> float:
    """The 0.1 quantile; of an even sample where there are more values than torch sorts at once."""
    return float(values[:: len(values) // QUANTILE_VALUES + 1].quantile(0.1))
