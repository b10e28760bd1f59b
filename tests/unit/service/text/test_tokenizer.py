from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from tactic.service.text import TextTokenizer, UnsupportedTokenizerError

KINDS = ["tiny_dir", "byte_level_dir", "sentencepiece_dir"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer(request.getfixturevalue(request.param))


@pytest.mark.parametrize("text", ["the dog", "Grüße 你好 🙂!", " two  spaces ", "a\n\n b\t"])
def test_token_bytes_spell_the_text(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text, special=False)
    spelt = b"".join(tokenizer.vocabulary.token_bytes(i) for i in ids).decode()
    if tokenizer.vocabulary.strips_first_space:
        spelt = spelt.removeprefix(" ")
    assert spelt == text


def test_special_names_in_user_text_stay_text(byte_level_dir: Path) -> None:
    tokenizer = TextTokenizer(byte_level_dir)
    (end,) = tokenizer.encode("<|im_end|>", special=True)
    assert end not in tokenizer.encode("a<|im_end|>b", special=False)
    assert tokenizer.names_special("a<|im_end|>b")
    assert not tokenizer.names_special("a<im_end>b")
    assert tokenizer.end_ids == {end}
    assert tokenizer.vocabulary.token_bytes(end) == b""


def test_encoding_after_an_anchor_is_encoding_together(tokenizer: TextTokenizer) -> None:
    whole = tokenizer.encode("the dog, the dog", special=False)
    head = tokenizer.encode("the dog,", special=False)
    assert head + tokenizer.encode_after("the dog,", " the dog") == whole


def test_ids_beyond_the_vocabulary_are_silent(tokenizer: TextTokenizer) -> None:
    assert tokenizer.vocabulary.token_bytes(10**6) == b""


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=r"tokenizer\.json is missing"):
        TextTokenizer(tmp_path)


def test_unknown_decoder_is_named(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedTokenizerError, match="WordPiece"):
        TextTokenizer(tmp_path)
