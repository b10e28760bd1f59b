"""Chat templates, rendered piece by piece as a session grows."""

from __future__ import annotations

import json
import re
import secrets
from array import array
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn, TypedDict

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tactic.service.text.tokenizer import TextTokenizer
from tactic.service.text.vocabulary import UnsupportedTokenizerError

# Cannot be guessed, so no message can contain it.
MARK = f"Mark{secrets.token_hex(8)}"
MARKS = re.compile(MARK + r"x(\d+)x")


class Message(TypedDict):
    """One message of a conversation."""

    role: str
    content: str


HELLO: Message = {"role": "user", "content": "Hi"}


class TemplateRefusedError(ValueError):
    """The chat template does not take these messages in this place."""


class ChatTemplate:
    """Renders what a session's token log gains.

    A log is empty or ends inside an open message, a context or an assistant's answer. What comes next starts
    with the text that closes that message. It is found by rendering a short conversation that ends in the
    same way, with a mark for the open message's content, and taking what follows the mark.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        """Compiles the tokenizer's template.

        Raises:
            UnsupportedTokenizerError: if there is none, it does not compile, or a conversation's rendering
                changes when it goes on.
        """
        if tokenizer.chat_template is None:
            raise UnsupportedTokenizerError(
                "the checkpoint has no chat template: put one into chat_template.jinja in its directory"
            )
        self._tokenizer = tokenizer
        self._template = _compile(tokenizer.chat_template)
        self._check_stable()

    def prompt(self, tail: str, turns: int, messages: Sequence[Message]) -> array[int]:
        """Encodes new messages and the opening of the answer.

        Args:
            tail: how the log ends: "", "context" or "assistant".
            turns: turns in the log.
            messages: the new ones.

        Returns:
            Token ids to put after the log, an array of type "I".

        Raises:
            TemplateRefusedError: with the template's own words.
        """
        # Contents that name special tokens stay plain text: they are cut out and encoded by themselves.
        literal: list[str] = []
        safe: list[Message] = []
        for message in messages:
            content = message["content"]
            if self._tokenizer.names_special(content):
                literal.append(content)
                content = f"{MARK}x{len(literal)}x"
            safe.append({"role": message["role"], "content": content})
        text = self._after_history(self._history(tail, turns), safe, generate=True)
        tokens = array("I")
        # A split at a pattern with one group alternates text and group.
        for place, part in enumerate(MARKS.split(text)):
            if place % 2:
                tokens += self._tokenizer.encode(literal[int(part) - 1], special=False)
            elif part:
                tokens += self._tokenizer.encode(part, special=True)
        return tokens

    def open_context(self, tail: str, turns: int) -> tuple[array[int], str]:
        """Encodes what stands before the text of an appended context.

        Args:
            tail: how the log ends: "", "context" or "assistant".
            turns: turns in the log.

        Returns:
            Token ids to put after the log, and the text to which the context's first token is joined.

        Raises:
            TemplateRefusedError: with the template's own words.
        """
        mark = f"{MARK}x1x"
        context: Message = {"role": self._context_role(tail, turns), "content": mark}
        text = self._after_history(self._history(tail, turns), [context, HELLO], generate=True)
        opening = text[: text.index(mark)]
        anchor = "" if self._tokenizer.ends_special(opening) else opening[-1:]
        return self._tokenizer.encode(opening, special=True), anchor

    def _context_role(self, tail: str, turns: int) -> str:
        """Returns "system" where the template takes it, else "user"."""
        history, refusal = self._history(tail, turns), ""
        for role in ("system", "user"):
            context: Message = {"role": role, "content": f"{MARK}x1x"}
            try:
                text = self._after_history(history, [context, HELLO], generate=True)
            except TemplateRefusedError as error:
                refusal = str(error)
                continue
            if f"{MARK}x1x" in text:
                return role
        raise TemplateRefusedError(f"the model's chat template takes no context here: {refusal}")

    def _history(self, tail: str, turns: int) -> list[Message]:
        """Returns a short conversation that ends as the log does, with a mark in its open message."""
        if tail == "assistant":
            return [HELLO, {"role": "assistant", "content": f"{MARK}x0x"}]
        if tail == "context":
            before: list[Message] = [HELLO, {"role": "assistant", "content": "Hi"}] if turns else []
            role = self._context_role("assistant" if turns else "", turns)
            return [*before, {"role": role, "content": f"{MARK}x0x"}]
        return []

    def _after_history(
        self, history: Sequence[Message], messages: Sequence[Message], *, generate: bool
    ) -> str:
        text = self._render([*history, *messages], generate=generate)
        if not history:
            return text
        _, mark, after = text.partition(f"{MARK}x0x")
        if not mark:
            raise TemplateRefusedError("the model's chat template leaves out earlier messages")
        return after

    def _render(self, messages: Sequence[Message], *, generate: bool) -> str:
        try:
            return self._template.render(
                messages=list(messages),
                add_generation_prompt=generate,
                tools=None,
                documents=None,
                bos_token=self._tokenizer.bos,
                eos_token=self._tokenizer.eos,
            )
        except TemplateError as error:
            raise TemplateRefusedError(f"the model's chat template refuses the messages: {error}") from None

    def _check_stable(self) -> None:
        talk: list[Message] = [
            {"role": "user", "content": "One"},
            {"role": "assistant", "content": "Two"},
            {"role": "user", "content": "Three"},
        ]
        try:
            grown = self._render(talk[:1], generate=True) + "Two"
            grown += self._after_history(self._history("assistant", 1), talk[2:], generate=True)
            whole = self._render(talk, generate=True)
        except TemplateRefusedError as error:
            raise UnsupportedTokenizerError(str(error)) from None
        if grown != whole:
            raise UnsupportedTokenizerError(
                "the chat template renders earlier messages differently when a conversation goes on, so a "
                f"session cannot grow: {whole!r} is not {grown!r}"
            )


class _GenerationTag(Extension):
    """`{% generation %}` marks answers for training; it renders as what is inside."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _compile(source: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag]
    )
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise UnsupportedTokenizerError(f"the chat template does not compile: {error}") from None


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(value: Any, indent: int | None = None) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
