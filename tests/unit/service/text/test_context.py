from array import array
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tactic.service.text import InvalidUtf8Error, TextTokenizer, encode_chunk

WORDS = st.sampled_from(["the", "dog", "Grüße", "你好", "🙂", "1234", "x=1;", "end.", "a-b", "\n", "don't"])
TEXTS = st.lists(WORDS, min_size=1, max_size=40).map(" ".join)


@pytest.fixture(params=["byte_level_dir", "sentencepiece_dir"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer(request.getfixturevalue(request.param))


def stream(tokenizer: TextTokenizer, chunks: list[bytes]) -> array:
    tokens, anchor, carry = array("I"), "", b""
    for i, chunk in enumerate(chunks):
        encoded = encode_chunk(tokenizer, anchor, carry, chunk, last=i == len(chunks) - 1)
        tokens += encoded.token_ids
        anchor, carry = encoded.anchor, encoded.carry
    assert carry == b""
    return tokens


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(text=TEXTS, data=st.data())
def test_tokens_do_not_depend_on_chunk_borders(
    tokenizer: TextTokenizer, text: str, data: st.DataObject
) -> None:
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    chunks = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    assert stream(tokenizer, chunks) == tokenizer.encode(text, special=False)


def test_text_without_borders_is_not_carried_for_ever(tokenizer: TextTokenizer) -> None:
    raw = "世".encode() * 5000
    encoded = encode_chunk(tokenizer, "", b"", raw[:-1], last=False)
    assert (len(encoded.carry), len(encoded.token_ids) > 0) == (14999, False)
    encoded = encode_chunk(tokenizer, "", encoded.carry, raw[-1:] + raw, last=False)
    assert encoded.carry == b""
    assert encoded.token_ids


def test_carry_is_counted(tokenizer: TextTokenizer) -> None:
    encoded = encode_chunk(tokenizer, "", b"", b"the dog, the do", last=False)
    assert encoded.carry == b" do"
    assert encoded.carried_tokens == len(tokenizer.encode_after(encoded.anchor, encoded.carry.decode()))


@pytest.mark.parametrize(
    ("carry", "data", "last", "position"),
    [
        (b"", b"ab\xff", False, 2),
        (b"\xc3", b"(", False, -1),
        (b"", b"ab\xc3", True, 2),
        (b"", b"\xed\xa0\x80", True, 0),
    ],
)
def test_invalid_utf8_is_located(
    tokenizer: TextTokenizer, carry: bytes, data: bytes, last: bool, position: int
) -> None:
    with pytest.raises(InvalidUtf8Error) as caught:
        encode_chunk(tokenizer, "", carry, data, last=last)
    assert caught.value.position == position


def test_cut_character_is_carried(byte_level_dir: Path) -> None:
    tokenizer = TextTokenizer(byte_level_dir)
    encoded = encode_chunk(tokenizer, "", b"", "dog 🙂".encode()[:-2], last=False)
    assert encoded.carry == "dog 🙂".encode()[:-2]
