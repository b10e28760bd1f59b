"""Text to tokens and back: tokenizer, chat template, streamed contexts and streamed output."""

from tactic.service.text.context import EncodedChunk, InvalidUtf8Error, encode_chunk
from tactic.service.text.output import OutputText, Piece
from tactic.service.text.template import ChatTemplate, Message, TemplateRefusedError
from tactic.service.text.tokenizer import TextTokenizer
from tactic.service.text.vocabulary import UnsupportedTokenizerError

__all__ = [
    "ChatTemplate",
    "EncodedChunk",
    "InvalidUtf8Error",
    "Message",
    "OutputText",
    "Piece",
    "TemplateRefusedError",
    "TextTokenizer",
    "UnsupportedTokenizerError",
    "encode_chunk",
]
