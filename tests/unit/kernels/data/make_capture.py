"""Makes capture.npz: keys and queries of the reference model, for statistics that the tests pin.

python tests/unit/kernels/data/make_capture.py --books FOLDER
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from tactic.workers.evaluation.model import Checkpoint
from tactic.workers.evaluation.tasks.haystack import Haystack
from tactic.workers.evaluation.tasks.prompt import PromptBuilder

HERE = Path(__file__).parent
MODEL = HERE.parents[3] / "deploy" / "reference-model" / "checkpoint"
LENGTH, QUERIES = 3072, 32
HEADS = ((4, 0), (5, 1))  # (layer, KV head): one that looks facts up, one that reads widely
LEVELS = 31  # of a key's component, either side of zero: 6 bits keep the file small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--books", type=Path, required=True, help="text file or folder of *.txt.xz")
    parser.add_argument("--out", type=Path, default=HERE / "capture.npz")
    arguments = parser.parse_args()
    checkpoint = Checkpoint.load(MODEL, device="cpu", dtype="float32")
    haystack = Haystack.load(arguments.books, checkpoint.tokenizer, tokens=LENGTH)
    sample = PromptBuilder(checkpoint.tokenizer, haystack, "reference").sample(
        "niah_multiquery", LENGTH, seed=0, number=0
    )
    steps = checkpoint.prefill(sample.prompt).capture(sample.gold[: QUERIES - 1])
    keys = torch.stack([steps[layer].keys[:, head] for layer, head in HEADS])
    queries = torch.stack([steps[layer].query[head] for layer, head in HEADS])
    unit = keys.abs().amax(1, keepdim=True) / LEVELS
    np.savez_compressed(
        arguments.out,
        keys=(keys / unit).round().to(torch.int8).numpy(),
        unit=unit.numpy(),
        queries=queries.half().numpy(),
        clustered=np.int64(steps[0].first),
    )
    print(f"{arguments.out}: {arguments.out.stat().st_size:,} bytes, {keys.shape[1]} positions")


if __name__ == "__main__":
    main()
