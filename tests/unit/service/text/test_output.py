from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tactic.service.text import OutputText, TextTokenizer
from tactic.v1 import types_pb2


@pytest.fixture(params=["tiny_dir", "byte_level_dir", "sentencepiece_dir"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer(request.getfixturevalue(request.param))


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    text=st.text(alphabet="abé你🙂 \n<STOP>", max_size=30),
    stops=st.lists(st.sampled_from(["STOP", "<S", "ab", "你🙂", "OP>a"]), max_size=3, unique=True),
    data=st.data(),
)
def test_output_is_the_text_before_the_first_stop(
    tokenizer: TextTokenizer, text: str, stops: list[str], data: st.DataObject
) -> None:
    output, shown, tokens = OutputText(tokenizer.vocabulary, stops), "", []
    for token_id in tokenizer.encode(text, special=False):
        output.push(token_id)
        if data.draw(st.booleans()):
            piece = output.take()
            shown, tokens = shown + piece.text, tokens + piece.token_ids
            # What is shown never goes beyond its tokens, nor into a stop string.
            assert all(stop not in shown for stop in stops)
        if output.stopped:
            break
    piece = output.flush()
    shown, tokens = shown + piece.text, tokens + piece.token_ids
    ends = [(at, stop) for stop in stops if (at := text.find(stop)) >= 0]
    if not ends:
        assert (shown, output.stopped) == (text, "")
        assert tokens == list(tokenizer.encode(text, special=False))
    elif output.stopped:
        # Another stop that ends sooner may be seen first, though it begins later.
        assert text.startswith(shown + output.stopped)


def test_half_characters_and_broken_bytes(tiny_dir: Path) -> None:
    tokenizer = TextTokenizer(tiny_dir)
    byte = {tokenizer.vocabulary.token_bytes(i): i for i in range(256)}
    output, seen = OutputText(tokenizer.vocabulary), []
    for value in "é".encode() + b"\xff" + b"a" + "🙂".encode()[:3] + b"b" + b"\xe4\xbd":
        output.push(byte[bytes([value])])
        seen.append(output.take().text)
    assert seen == ["", "é", "\ufffd", "a", "", "", "", "\ufffdb", "", ""]
    assert output.flush().text == ""


def test_tokens_come_with_their_text(byte_level_dir: Path) -> None:
    tokenizer = TextTokenizer(byte_level_dir)
    output = OutputText(tokenizer.vocabulary, ["qqq"])
    x, q = tokenizer.encode("x", special=False)[0], tokenizer.encode("q", special=False)[0]
    for token_id in (x, q):
        output.push(token_id, types_pb2.TokenLogprob(token_id=token_id))
    first = output.take()
    assert (first.text, first.token_ids, [p.token_id for p in first.logprobs]) == ("x", [x], [x])
    output.push(x)
    assert output.take().text == "qx"


def test_restored_output_goes_on_at_the_same_character(tiny_dir: Path) -> None:
    tokenizer = TextTokenizer(tiny_dir)
    ids = tokenizer.encode("aé你🙂STOP", special=False)
    for cut in range(len(ids)):
        before, shown, released = OutputText(tokenizer.vocabulary, ["STOP"]), "", []
        for token_id in ids[:cut]:
            before.push(token_id)
            piece = before.take()
            shown, released = shown + piece.text, released + piece.token_ids
        after = OutputText(tokenizer.vocabulary, ["STOP"])
        after.restore(released)
        for token_id in ids[len(released) :]:
            after.push(token_id)
        assert shown + after.flush().text == "aé你🙂"
        assert after.stopped == "STOP"


def test_special_tokens_are_silent_but_counted(byte_level_dir: Path) -> None:
    tokenizer = TextTokenizer(byte_level_dir)
    (end,) = tokenizer.encode("<|im_end|>", special=True)
    output = OutputText(tokenizer.vocabulary)
    output.push(end)
    piece = output.take()
    assert (piece.text, piece.token_ids) == ("", [end])
