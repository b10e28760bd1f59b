"""The tasks by their names in RULER (arXiv 2404.06654, appendix B)."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tactic.workers.evaluation.tasks.counting import common_words, frequent_words
from tactic.workers.evaluation.tasks.episode import Episode, Style
from tactic.workers.evaluation.tasks.needles import Needles
from tactic.workers.evaluation.tasks.people import People
from tactic.workers.evaluation.tasks.tracking import Tracking

TASKS: dict[str, Callable[[Random, list[str], Style], Episode]] = {
    "niah_single_1": Needles(fill="noise"),
    "niah_single_2": Needles(),
    "niah_single_3": Needles(value="uuid"),
    "niah_multikey_1": Needles(keys=4),
    "niah_multikey_2": Needles(fill="needles"),
    "niah_multikey_3": Needles(fill="needles", key="uuid", value="uuid"),
    "niah_multivalue": Needles(values=4),
    "niah_multiquery": Needles(keys=4, queries=4),
    "vt": Tracking(),
    "cwe": common_words,
    "fwe": frequent_words,
    "qa_1": People(hops=1),
    "qa_2": People(hops=2),
}
PERPLEXITY = "perplexity"
"""Not a question: a book's text goes on, and the loss of its next tokens is measured."""
