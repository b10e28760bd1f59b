"""tactic chat: one question, or a conversation."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from tactic.service.cli._context import CliError, options, run
from tactic.service.cli._conversation import Ask, Conversation
from tactic.service.cli._output import answer_stats, plain, print_json
from tactic.service.cli._session import append_file
from tactic.service.client import AttentionMode, SamplingOptions, TacticOptions

MAX_TOKENS, MAX_SEED = 2**32 - 1, 2**63 - 1
MODES = {"tactic": AttentionMode.ATTENTION_MODE_TACTIC, "dense": AttentionMode.ATTENTION_MODE_DENSE}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(chat)


def chat(
    context: typer.Context,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Ask this and exit; - reads it from standard input.")
    ] = None,
    session: Annotated[str, typer.Option(help="Go on in this session; it is created if there is none.")] = "",
    file: Annotated[Path | None, typer.Option(help="Text to append to the session first.")] = None,
    system: Annotated[str, typer.Option(help="System message of the first turn.")] = "",
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_p: Annotated[float | None, typer.Option(help="In (0, 1].")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=MAX_TOKENS, help="Most tokens of an answer.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=MAX_SEED, help="Makes sampling repeatable.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends an answer. Repeatable.")] = None,
    mode: Annotated[str, typer.Option(help="tactic or dense attention.")] = "tactic",
    threshold: Annotated[float | None, typer.Option(help="Target share P of the attention weight.")] = None,
    estimator: Annotated[str | None, typer.Option(help="guarded, fit, centroid or exact.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also measure the share really reached; slow.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the answer and its figures as JSON.")
    ] = False,
) -> None:
    """Talk to the model: interactively, or one question with -m. Answers go to stdout, figures to stderr."""
    if mode not in MODES:
        raise CliError(f"--mode {mode}: choose tactic or dense", 2)
    if as_json and message is None:
        raise CliError("--json needs a question: give it with -m", 2)
    ask = Ask(
        session_id=session,
        system=system,
        sampling=SamplingOptions(
            temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, stop=stop or []
        ),
        tactic=TacticOptions(mode=MODES[mode], threshold=threshold, estimator=estimator, measure=measure),
    )
    # Here, because an event loop's first Ctrl-C would have to wait for it.
    text = sys.stdin.read() if message == "-" else message

    async def body() -> None:
        async with options(context).connect() as client:
            conversation = Conversation(client, ask)
            if session or file or text is None:
                await conversation.open_session()
            if file:
                await append_file(client, conversation.session_id, file)
            if text is None:
                await conversation.talk()
            else:
                await _once(conversation, text, as_json)

    run(body())


async def _once(conversation: Conversation, text: str, as_json: bool) -> None:
    answer = await conversation.ask(text, quiet=as_json)
    if as_json:
        print_json(
            {
                "text": answer.text,
                "session_id": conversation.session_id,
                **answer_stats(answer),
                **(plain(answer.finished.attention) if answer.finished else {}),
            }
        )
