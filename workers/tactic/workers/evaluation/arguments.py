"""Arguments that the sub-commands share, and what they stand for."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from itertools import product
from pathlib import Path
from typing import Any

from tactic.kernels.estimators import NAMES
from tactic.kernels.index.units import CLUSTER_SIZES
from tactic.workers.evaluation.errors import EvaluationError
from tactic.workers.evaluation.methods.registry import SERVED
from tactic.workers.evaluation.model import DTYPES, Checkpoint
from tactic.workers.evaluation.tasks.episode import STYLES
from tactic.workers.evaluation.tasks.haystack import Haystack
from tactic.workers.evaluation.tasks.prompt import PromptBuilder

Question = tuple[int, int, str]
"""Seed, context and task of a sample."""

QUICKSTART_BOOK = Path("deploy/quickstart/book.txt.xz")


def add_model(parser: ArgumentParser) -> None:
    """Adds the checkpoint, and where and how it runs."""
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="Hugging Face checkpoint")
    parser.add_argument("--device", choices=["auto", "cuda", "cpu"], default="auto", help="[default: auto]")
    parser.add_argument(
        "--dtype",
        choices=["auto", *DTYPES],
        default="auto",
        help="of weights and KV cache [default: bfloat16 on a GPU, float32 on CPU]",
    )
    parser.add_argument(
        "--sinks", type=natural, default=16, help="first positions always attended [default: 16]"
    )


def add_contexts(parser: ArgumentParser, *, contexts: tuple[int, ...], seeds: int = 3) -> None:
    """Adds the texts, the context lengths and the seeds."""
    parser.add_argument(
        "--books",
        type=Path,
        default=QUICKSTART_BOOK,
        metavar="PATH",
        help=f"text (*.txt, *.txt.xz), or a folder of them [default: {QUICKSTART_BOOK} of the project]",
    )
    parser.add_argument(
        "--contexts",
        type=tokens,
        nargs="+",
        default=list(contexts),
        metavar="TOKENS",
        help=f"tokens of prompt and answer, such as 4096 or 16k [default: {' '.join(map(str, contexts))}]",
    )
    parser.add_argument(
        "--seeds", type=positive, default=seeds, help=f"samples of each task and context [default: {seeds}]"
    )
    parser.add_argument(
        "--style",
        choices=STYLES,
        default="ruler",
        help="wording: RULER's, or what the reference model was trained on [default: ruler]",
    )


def add_output(parser: ArgumentParser) -> None:
    """Adds the folder for results."""
    parser.add_argument(
        "--out",
        type=folder,
        required=True,
        metavar="DIR",
        help="folder for the result files, such as tests/bench/results",
    )


def add_estimator(parser: ArgumentParser) -> None:
    """Adds the estimator of a run that takes one."""
    parser.add_argument("--estimator", choices=NAMES, default=SERVED, help=f"[default: {SERVED}]")


def add_cluster_size(parser: ArgumentParser) -> None:
    """Adds the average size of a cluster."""
    parser.add_argument(
        "--cluster-size", type=int, choices=CLUSTER_SIZES, default=32, help="keys a cluster [default: 32]"
    )


def add_limit(parser: ArgumentParser) -> None:
    """Adds the time after which a run ends by itself."""
    parser.add_argument(
        "--seconds",
        type=positive,
        metavar="N",
        help="stop in time for this, use what there is [default: no limit]",
    )


def given(arguments: Namespace) -> dict[str, object]:
    """The arguments that a result file names: all but those that say which function runs."""
    return {name: value for name, value in vars(arguments).items() if name not in ("run", "command")}


def questions(arguments: Namespace) -> list[Question]:
    """Seed, context and task of every sample; seed by seed, so that a run cut short has asked all alike."""
    # One that is named twice is no second sample.
    return list(dict.fromkeys(product(range(arguments.seeds), arguments.contexts, arguments.tasks)))


def load_checkpoint(arguments: Namespace) -> Checkpoint:
    """The checkpoint of `add_model`'s arguments."""
    return Checkpoint.load(
        arguments.model, device=arguments.device, dtype=arguments.dtype, sinks=arguments.sinks
    )


def load_builder(arguments: Namespace, checkpoint: Checkpoint) -> PromptBuilder:
    """What makes prompts for a checkpoint; see `make_builder`."""
    return make_builder(arguments, checkpoint.tokenizer, checkpoint.context_length)


def make_builder(arguments: Namespace, tokenizer: Any, context_length: int) -> PromptBuilder:
    """What makes prompts, of `add_contexts`' arguments.

    Raises:
        EvaluationError: a context is longer than the model's, or there is not enough text for it.
    """
    longest = max(arguments.contexts)
    if longest > context_length:
        raise EvaluationError(
            f"--contexts {longest}: {arguments.model} has {context_length:,} positions "
            "(max_position_embeddings)"
        )
    return PromptBuilder(
        tokenizer, Haystack.load(arguments.books, tokenizer, tokens=longest), arguments.style
    )


def folder(text: str) -> Path:
    """A folder that is there or can be made: results are written only after a long run."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise ArgumentTypeError(f"{text!r} is a file; name a folder")
    return path


def new_file(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    if path.is_dir():
        raise ArgumentTypeError(f"{text!r} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{text!r}: there is no folder {str(path.parent)!r}")
    return path


def tokens(text: str) -> int:
    """A number of tokens, such as 4096 or 16k (k is 1024)."""
    scale, digits = (1024, text[:-1]) if text[-1:] in "kK" else (1, text)
    if not digits.isdecimal() or not int(digits):
        raise ArgumentTypeError(f"{text!r} is not a number of tokens, such as 4096 or 16k")
    return scale * int(digits)


def positive(text: str) -> int:
    """An integer, at least 1."""
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} must be an integer, at least 1")
    return int(text)


def natural(text: str) -> int:
    """An integer, at least 0."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} must be an integer, at least 0")
    return int(text)


def share(text: str) -> float:
    """A threshold P in (0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ArgumentTypeError(f"{text!r} must be a number above 0 and at most 1")
    return value
