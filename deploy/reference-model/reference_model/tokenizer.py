"""The model's own byte-level BPE tokenizer and its chat format."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BEGIN, ROLE, END, PAD = "<|begin|>", "<|role|>", "<|end|>", "<|pad|>"
VOCABULARY_SIZE = 4096
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|role|>' + message['role'] + '\n' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|role|>assistant\n' }}{% endif %}"
)
# One token per digit: numbers and UUIDs then have one spelling wherever they stand, so they can be copied.
_PIECES = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learns a BPE of `VOCABULARY_SIZE` tokens, the four special ones included."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BEGIN, ROLE, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_paragraphs(texts), trainer)
    return tokenizer


def _paragraphs(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from re.findall(r"(?s).+?(?:\n+|$)", text)


@dataclass
class Codec:
    """Text to token ids, with the ids and headers that rows are built from."""

    tokenizer: Tokenizer
    begin: int = field(init=False)
    role: int = field(init=False)
    end: int = field(init=False)
    headers: dict[str, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.begin, self.role, self.end = (self.tokenizer.token_to_id(token) for token in (BEGIN, ROLE, END))
        self.headers = {
            role: [self.role, *self.encode(f"{role}\n")] for role in ("system", "user", "assistant")
        }

    @classmethod
    def load(cls, path: Path) -> "Codec":
        return cls(Tokenizer.from_file(str(path)))

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=False))

    def message(self, role: str, content: list[int]) -> list[int]:
        """One chat message, as the chat template writes it."""
        return [*self.headers[role], *content, self.end]
