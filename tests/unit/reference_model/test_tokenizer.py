"""The tokenizer spells numbers one way, and learns its special tokens."""

from random import Random

import pytest
from reference_model.facts import uuid
from reference_model.tokenizer import VOCABULARY_SIZE, Codec, train_tokenizer


@pytest.mark.parametrize(
    "text", ["7391846", "Ünïcode “quotes” — and\n\nlines \U0001f600", "VAR XQZ = 12345."]
)
def test_text_survives(codec: Codec, text: str) -> None:
    assert codec.decode(codec.encode(text)) == text


def test_a_number_has_one_spelling_wherever_it_stands(codec: Codec) -> None:
    digits = codec.encode("7391846")
    assert len(digits) == 7
    for text in ("is 7391846.", "(7391846)", "a7391846b"):
        ids = codec.encode(text)
        assert any(ids[i : i + 7] == digits for i in range(len(ids)))


def test_uuids_survive(codec: Codec) -> None:
    for seed in range(20):
        text = f"The token is {uuid(Random(seed))}."
        assert codec.decode(codec.encode(text)) == text


def test_training_learns_at_most_the_vocabulary() -> None:
    codec = Codec(train_tokenizer(["It is a truth universally acknowledged.\n\n" * 3, "Call me 42."]))
    assert codec.tokenizer.get_vocab_size() <= VOCABULARY_SIZE
    assert codec.headers["user"][0] == codec.role
