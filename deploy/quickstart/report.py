"""What the demo prints, and what must have happened for it to succeed."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tactic.service.client import Answer, AttentionStats

NOTHING = "-"
# Wide enough for the table also where there is no terminal, as in a log.
WIDTH = 100

console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


@dataclass
class Checks:
    """Claims with their evidence; the demo succeeds if all hold."""

    failed: list[str] = field(default_factory=list)

    def check(self, claim: str, holds: bool, evidence: str) -> None:
        """Prints a claim with its evidence, and remembers it if it does not hold."""
        mark = "[green]✓[/]" if holds else "[red]✗[/]"
        console.print(f"  {mark} {escape(claim)}: {escape(evidence)}", soft_wrap=True)
        if not holds:
            self.failed.append(f"{claim}: {evidence}")


def mean_share(answer: Answer) -> float:
    """Returns the share of the KV cache read, mean over layers."""
    shares = answer.attention.read_share_per_layer
    return sum(shares) / max(1, len(shares))


def shares(answer: Answer) -> str:
    """Returns the share of the KV cache read in each layer."""
    return " ".join(f"{share:.0%}" for share in answer.attention.read_share_per_layer)


def comparison(columns: dict[str, Answer]) -> Table:
    """Builds a table with a column for each turn."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for label, cells in _rows(list(columns.values())):
        table.add_row(label, *cells)
    return table


def _rows(answers: Sequence[Answer]) -> list[tuple[str, list[str]]]:
    return [
        ("context, tokens", [f"{answer.attention.context_length:,}" for answer in answers]),
        ("prefix tokens reused", [f"{answer.usage.prefix_tokens_reused:,}" for answer in answers]),
        (
            "clusters reused, tokens",
            [f"{answer.attention.tokens_index_reused:,}" for answer in answers],
        ),
        ("newly clustered, tokens", [f"{answer.attention.tokens_clustered:,}" for answer in answers]),
        ("time to first token", [_seconds(answer.ttft_s) for answer in answers]),
        ("tokens a second", [_rate(answer.tokens_per_s) for answer in answers]),
        ("tokens generated", [f"{len(answer.token_ids):,}" for answer in answers]),
        ("KV read, mean of layers", [f"{mean_share(answer):.1%}" for answer in answers]),
        ("attention share reached, mean", [_measured(answer.attention, "mean") for answer in answers]),
        (
            "the same, lowest decile",
            [_measured(answer.attention, "p10") for answer in answers],
        ),
        ("index versions seen", [_versions(answer) for answer in answers]),
        ("refreshes swapped in", [f"{answer.attention.refreshes}" for answer in answers]),
    ]


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f} s"


def _rate(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _measured(stats: AttentionStats, which: str) -> str:
    name = f"attention_share_{which}"
    return f"{getattr(stats, name):.3f}" if stats.HasField(name) else NOTHING


def _versions(answer: Answer) -> str:
    versions = answer.attention.index_versions
    return (
        NOTHING
        if not versions
        else f"{versions[0]}…{versions[-1]}"
        if len(versions) > 1
        else f"{versions[0]}"
    )
