"""A tiny checkpoint with random weights, a prefilled prompt, and text for haystacks."""

import warnings
from pathlib import Path

import pytest

from tactic.workers.evaluation.context import Context
from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.haystack import Haystack
from tactic.workers.evaluation.tasks.prompt import PromptBuilder

ROOT = Path(__file__).parents[4]
BOOK = ROOT / "deploy" / "quickstart" / "book.txt.xz"
PROMPT = 1500


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint: Path) -> Checkpoint:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, at its first import
        return Checkpoint.load(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def haystack(checkpoint: Checkpoint) -> Haystack:
    return Haystack.load(BOOK, checkpoint.tokenizer, tokens=8192)


@pytest.fixture(scope="session", params=["ruler", "reference"])
def builder(request: pytest.FixtureRequest, checkpoint: Checkpoint, haystack: Haystack) -> PromptBuilder:
    return PromptBuilder(checkpoint.tokenizer, haystack, request.param)


@pytest.fixture(scope="session")
def ruler(checkpoint: Checkpoint, haystack: Haystack) -> PromptBuilder:
    return PromptBuilder(checkpoint.tokenizer, haystack, "ruler")


@pytest.fixture(scope="session")
def prompt(haystack: Haystack) -> list[int]:
    tokens: list[int] = haystack.book.tokens[:PROMPT].tolist()
    return tokens


@pytest.fixture(scope="session")
def context(checkpoint: Checkpoint, prompt: list[int]) -> Context:
    return checkpoint.prefill(prompt, room=64)
