"""Prepares data, trains, evaluates and exports the reference model: `python -m reference_model --help`."""

import argparse
import json
import os
import time
from pathlib import Path

import torch
from reference_model import checkpoint, corpus
from reference_model.episodes import TASKS
from reference_model.evaluate import Evaluator
from reference_model.model import Llama, ModelConfig
from reference_model.schedule import SCHEDULES
from reference_model.tokenizer import Codec
from reference_model.training import ATTENTION, Run, train


def main() -> None:
    # The rows are built in many processes already.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    arguments = _parser().parse_args()
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reference_model", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare", help="train the tokenizer and tokenize the books")
    command.add_argument("--books", type=Path, required=True, help="folder with *.txt.xz")
    command.add_argument("--data", type=Path, required=True, help="folder to write")
    command.set_defaults(run=lambda a: corpus.prepare(a.books, a.data))

    command = commands.add_parser("train", help="train, or go on training")
    command.add_argument("--data", type=Path, required=True, help="folder written by prepare")
    command.add_argument("--out", type=Path, required=True, help="folder for weights and optimizer state")
    command.add_argument("--resume", type=Path, help="folder of an unfinished run to go on with")
    command.add_argument("--start", type=Path, help="folder whose weights a new run starts from")
    command.add_argument("--schedule", choices=SCHEDULES, default="reference")
    command.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop, resumable, after this time"
    )
    command.add_argument("--workers", type=int, default=max(0, (os.cpu_count() or 1) - 2))
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--report", type=int, default=100, help="steps between progress lines")
    command.add_argument("--attention", choices=ATTENTION, default="cudnn", help="SDPA backend on CUDA")
    command.set_defaults(run=_train)

    command = commands.add_parser("evaluate", help="measure recall and perplexity on the held-out book")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--checkpoint", type=Path, required=True)
    command.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384, 32768, 131072])
    command.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    command.add_argument("--rows", type=int, default=50, help="contexts for each task and length")
    command.add_argument("--turns", type=int, default=4, help="questions about one context")
    command.add_argument("--json", type=Path, help="file for the figures")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("export", help="complete a trained folder to a Hugging Face checkpoint")
    command.add_argument("--data", type=Path, required=True)
    command.add_argument("--checkpoint", type=Path, required=True)
    command.set_defaults(
        run=lambda a: checkpoint.describe(a.checkpoint, ModelConfig(), Codec.load(a.data / "tokenizer.json"))
    )
    return parser


def _train(a: argparse.Namespace) -> None:
    train(
        Run(a.data, a.out, a.schedule, a.resume, a.start, a.seconds, a.workers, a.seed, a.report, a.attention)
    )


def _evaluate(a: argparse.Namespace) -> None:
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model = Llama(ModelConfig()).to(device)
    step = checkpoint.resume(a.checkpoint, model, None)
    evaluator = Evaluator(model, a.data, dtype)
    figures: dict[str, object] = {"step": step}
    for length in a.lengths:
        began = time.monotonic()
        texts = evaluator.perplexity(length, max(2, min(a.rows, 500_000 // length)))
        figures[f"perplexity/{length}"] = texts
        print(
            f"{length} perplexity " + " ".join(f"{key}={value:.2f}" for key, value in texts.items()),
            flush=True,
        )
        for task in a.tasks:
            right, asked = evaluator.accuracy(task, length, a.rows, turns=a.turns)
            figures[f"{task}/{length}"] = [right, asked]
            print(f"{length} {task}: {right}/{asked} = {right / asked:.1%}", flush=True)
        print(f"{length} took {time.monotonic() - began:.0f} s", flush=True)
    if a.json:
        a.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
