"""Results on stdout, everything else on stderr; JSON for scripts."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table

from tactic.service.client import Answer
from tactic.service.launch.health import Progress

# Columns of a table that goes to a file or a pipe.
FILE_WIDTH = 160

out = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)
err = Console(stderr=True)


def say(text: str) -> None:
    """Prints a result as it is."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def note(text: str, style: str = "") -> None:
    """Prints a remark, which no script should read, to stderr."""
    err.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Prints a value, or a protobuf message, as one JSON document."""
    out.print_json(json.dumps(value, default=str)) if out.is_terminal else print(
        json.dumps(value, default=str)
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints rows under headings; numbers to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    out.print(table, markup=False)


def plain(message: Message) -> dict[str, Any]:
    """Returns a message as JSON values: numbers as numbers, enums by name, times as ISO 8601."""
    return {
        field.name: _plain_field(message, field)
        for field in message.DESCRIPTOR.fields
        if _is_set(message, field)
    }


def _is_set(message: Message, field: Any) -> bool:
    return not field.has_presence or message.HasField(field.name)


def _plain_field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [_plain_value(each, field) for each in value]
    return _plain_value(value, field)


def _plain_value(value: Any, field: Any) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Message):
        return plain(value)
    return field.enum_type.values_by_number[value].name if field.enum_type is not None else value


@contextmanager
def progress() -> Iterator[Progress]:
    """Yields a function that shows what is being waited for: a spinner, or a line for each step."""
    if err.is_terminal:
        with err.status("") as spinner:
            yield spinner.update
    else:
        yield note


def answer_stats(answer: Answer) -> dict[str, Any]:
    """Returns the figures of a finished turn by name; None where there is nothing to measure."""
    finished = answer.finished
    shares = list(finished.attention.read_share_per_layer) if finished else []
    attention = finished.attention if finished else None
    return {
        "ttft_s": answer.ttft_s,
        "tokens_per_s": answer.tokens_per_s,
        "prompt_tokens": finished.usage.prompt_tokens if finished else None,
        "completion_tokens": len(answer.token_ids),
        "prefix_tokens_reused": finished.usage.prefix_tokens_reused if finished else None,
        "context_length": attention.context_length if attention else None,
        "kv_read_share": sum(shares) / len(shares) if shares else None,
        "refreshes": attention.refreshes if attention else None,
    }


def stats_line(answer: Answer) -> str:
    """Returns the figures of a turn on one line."""
    stats = answer_stats(answer)
    parts = [f"{stats['completion_tokens']:,} tokens"]
    if stats["ttft_s"] is not None:
        parts.append(f"first after {stats['ttft_s']:.2f} s")
    if stats["tokens_per_s"] is not None:
        parts.append(f"{stats['tokens_per_s']:.1f} tokens/s")
    if stats["context_length"]:
        parts.append(f"context {stats['context_length']:,}")
    if stats["kv_read_share"] is not None:
        parts.append(f"KV read {stats['kv_read_share']:.1%}")
    if stats["prefix_tokens_reused"]:
        parts.append(f"prefix reused {stats['prefix_tokens_reused']:,}")
    if stats["refreshes"]:
        parts.append(f"{stats['refreshes']} refreshes")
    return " · ".join(parts)
