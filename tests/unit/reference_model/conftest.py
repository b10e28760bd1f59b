"""The training package of the reference model, and a small data folder for it."""

import json
import lzma
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

DEPLOY = Path(__file__).parents[3] / "deploy"
sys.path.insert(0, str(DEPLOY / "reference-model"))

from reference_model import corpus  # noqa: E402 - the folder has just been put on the path
from reference_model.rows import RowBuilder  # noqa: E402
from reference_model.tokenizer import Codec  # noqa: E402


@pytest.fixture(scope="session")
def checkpoint_dir() -> Path:
    return DEPLOY / "reference-model" / "checkpoint"


@pytest.fixture(scope="session")
def codec(checkpoint_dir: Path) -> Codec:
    return Codec.load(checkpoint_dir / "tokenizer.json")


@pytest.fixture(scope="session")
def book() -> str:
    return lzma.open(DEPLOY / "quickstart" / "book.txt.xz", "rt", encoding="utf-8").read()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, checkpoint_dir: Path, codec: Codec, book: str) -> Path:
    """What `prepare` writes, for one book that stands for both the training books and the held-out one."""
    directory = tmp_path_factory.mktemp("data")
    shutil.copy(checkpoint_dir / "tokenizer.json", directory)
    tokens = np.array(codec.encode(book[:120_000]), np.uint16)
    np.save(directory / "some-book.npy", tokens)
    np.save(directory / f"{corpus.HELD_OUT}.npy", tokens)
    words = sorted(set(re.findall(r"\b[a-z]{4,10}\b", book)))[:1000]
    (directory / "words.json").write_text(json.dumps(words))
    return directory


@pytest.fixture(scope="session")
def builder(data: Path, codec: Codec) -> RowBuilder:
    return RowBuilder(corpus.load(data, codec), codec)
