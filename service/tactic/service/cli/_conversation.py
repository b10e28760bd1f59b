"""A conversation at a terminal."""

import asyncio
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.patch_stdout import patch_stdout

from tactic.service.cli._context import CliError
from tactic.service.cli._output import note, stats_line
from tactic.service.cli._session import append_file
from tactic.service.client import (
    Answer,
    Message,
    NotFoundError,
    SamplingOptions,
    TacticClient,
    TacticError,
    TacticOptions,
)

HELP = """\
/file PATH   append a text file to the session
/session     show the session
/help        this list
/quit        end (Ctrl-D does, too); Ctrl-C stops an answer"""


@dataclass
class Ask:
    """What all turns of a conversation have in common."""

    session_id: str
    system: str
    sampling: SamplingOptions
    tactic: TacticOptions


class Conversation:
    """Asks turn by turn, on a session or without one."""

    def __init__(self, client: TacticClient, ask: Ask) -> None:
        self._client = client
        self._ask = ask
        self.session_id = ask.session_id

    async def open_session(self) -> None:
        """Takes the session that was named, or creates one."""
        try:
            if self.session_id:
                await self._client.get_session(self.session_id)
                return
        except NotFoundError:
            note(f"creating session {self.session_id}")
        self.session_id = (await self._client.create_session(self.session_id)).session_id

    async def ask(self, text: str, quiet: bool = False) -> Answer:
        """Runs one turn; prints the answer as it comes, and its figures, unless `quiet`."""
        messages = [Message(role="user", content=text)]
        if self._ask.system:
            messages.insert(0, Message(role="system", content=self._ask.system))
        events = self._client.chat(
            messages, session_id=self.session_id, sampling=self._ask.sampling, tactic=self._ask.tactic
        )

        def on_text(piece: str) -> None:
            self._remembered()
            if not quiet:
                _print_now(piece)

        answer = await Answer.collect(events, on_text)
        self._remembered()
        if not quiet:
            print()
            note(stats_line(answer), style="dim")
        return answer

    def _remembered(self) -> None:
        """From the first token of a turn on, the session has the system message; before, it has nothing."""
        if self.session_id:
            self._ask.system = ""

    async def talk(self) -> None:
        """Reads questions until the end of input."""
        note(f"session {self.session_id}; /help lists commands")
        prompt: PromptSession[str] = PromptSession("> ")
        while True:
            try:
                with patch_stdout():
                    line = (await prompt.prompt_async()).strip()
            except KeyboardInterrupt:
                continue
            except EOFError:
                break
            if line == "/quit":
                break
            if line:
                await self._answer_or_explain(line)
        note(f"go on with: tactic chat --session {self.session_id}")

    async def _answer_or_explain(self, line: str) -> None:
        """A failed turn ends neither the session nor the conversation."""
        try:
            if line.startswith("/"):
                await self._command(line)
            else:
                await self._interruptible(line)
        except (TacticError, CliError) as error:
            note(str(error), style="red")

    async def _interruptible(self, line: str) -> None:
        loop = asyncio.get_running_loop()
        turn = asyncio.create_task(self.ask(line))
        loop.add_signal_handler(signal.SIGINT, turn.cancel)
        try:
            await turn
        except asyncio.CancelledError:
            print()
            note("stopped; what was said so far stays in the session", style="dim")
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _command(self, line: str) -> None:
        name, _, argument = line.partition(" ")
        if name == "/file" and argument:
            response = await append_file(self._client, self.session_id, Path(argument.strip()).expanduser())
            note(f"{response.tokens_appended:,} tokens appended")
        elif name == "/session":
            session = await self._client.get_session(self.session_id)
            note(f"{session.token_count:,} tokens, {session.turn_count} turns")
        else:
            note(HELP)


def _print_now(text: str) -> None:
    # A model may say control characters; a terminal must not obey them.
    safe = "".join(char if char.isprintable() or char in "\n\t" else "·" for char in text)
    sys.stdout.write(safe if sys.stdout.isatty() else text)
    sys.stdout.flush()
