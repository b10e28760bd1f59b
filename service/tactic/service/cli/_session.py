"""tactic session: create, list, show, append, fork, delete."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from tactic.service.cli._context import CliError, options, run
from tactic.service.cli._output import err, plain, print_json, print_table, say
from tactic.service.client import AppendProgress, Session, TacticClient
from tactic.v1.session_pb2 import AppendContextResponse

READ_BYTES = 2**20

SessionId = Annotated[str, typer.Argument(help="The session's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    session = typer.Typer(help="Long-lived contexts.", no_args_is_help=True)
    session.command()(create)
    session.command("list")(list_sessions)
    session.command()(show)
    session.command()(append)
    session.command()(fork)
    session.command()(delete)
    app.add_typer(session, name="session")


def create(
    context: typer.Context,
    session_id: Annotated[str, typer.Argument(help="Name to give it [default: one is made].")] = "",
    label: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Repeatable.")] = None,
    model: Annotated[str, typer.Option(help="Model [default: the only one served].")] = "",
    as_json: Json = False,
) -> None:
    """Create a session and print its name."""
    labels = dict(_label(each) for each in label or [])

    async def body() -> Session:
        async with options(context).connect() as client:
            return await client.create_session(session_id, model=model, labels=labels)

    _print_named(run(body()), as_json)


def list_sessions(context: typer.Context, as_json: Json = False) -> None:
    """List all sessions."""

    async def body() -> list[Session]:
        async with options(context).connect() as client:
            return [session async for session in client.list_sessions()]

    found = run(body())
    if as_json:
        print_json([plain(session) for session in found])
        return
    rows = [
        (
            session.session_id,
            session.model,
            session.token_count,
            session.turn_count,
            session.update_time.ToJsonString(),
            _activity(session),
        )
        for session in found
    ]
    print_table(("session", "model", "tokens", "turns", "updated", "now"), rows)


def show(context: typer.Context, session_id: SessionId, as_json: Json = False) -> None:
    """Show one session."""

    async def body() -> Session:
        async with options(context).connect() as client:
            return await client.get_session(session_id)

    session = plain(run(body()))
    print_json(session) if as_json else print_table(
        ("field", "value"), [(key, str(session[key])) for key in session]
    )


def append(
    context: typer.Context,
    session_id: SessionId,
    file: Annotated[Path, typer.Argument(help="UTF-8 text; - reads standard input.")],
    append_id: Annotated[
        str, typer.Option(help="Name of the append, to resume it if this command is cut off.")
    ] = "",
    prefill: Annotated[
        bool, typer.Option(help="Compute the KV cache as soon as the text is complete.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Stream a text into a session. What is acknowledged is durable."""

    async def body() -> AppendContextResponse:
        async with options(context).connect() as client:
            return await append_file(client, session_id, file, append_id, prefill)

    response = run(body())
    if as_json:
        print_json(plain(response))
    else:
        say(
            f"{response.tokens_appended:,} tokens appended; {session_id} has {response.session.token_count:,}"
        )


async def append_file(
    client: TacticClient, session_id: str, file: Path, append_id: str = "", prefill: bool = True
) -> AppendContextResponse:
    """Streams a file (- is standard input) into a session with a progress bar on stderr.

    Raises:
        CliError: if the file cannot be read.
    """
    try:
        source, total = (
            (sys.stdin.buffer, None) if str(file) == "-" else (file.open("rb"), file.stat().st_size)
        )
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from None
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with source, Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(f"appending {file.name}", total=total)

        def show_progress(progress: AppendProgress) -> None:
            bar.update(task, completed=progress.bytes_accepted)

        return await client.append_context(
            session_id, _pieces(source), append_id=append_id, prefill=prefill, on_progress=show_progress
        )


def fork(
    context: typer.Context,
    session_id: SessionId,
    new_session_id: Annotated[str, typer.Argument(help="Name of the fork [default: one is made].")] = "",
    as_json: Json = False,
) -> None:
    """Create a session that starts with the tokens of another one, and print its name."""

    async def body() -> Session:
        async with options(context).connect() as client:
            return await client.fork_session(session_id, new_session_id)

    _print_named(run(body()), as_json)


def delete(context: typer.Context, session_ids: Annotated[list[str], typer.Argument(help="Names.")]) -> None:
    """Delete sessions with everything in them."""

    async def body() -> None:
        async with options(context).connect() as client:
            for session_id in session_ids:
                await client.delete_session(session_id)

    run(body())


def _print_named(session: Session, as_json: bool) -> None:
    print_json(plain(session)) if as_json else print(session.session_id)


def _activity(session: Session) -> str:
    if session.active_turn_id:
        return f"turn {session.active_turn_id}"
    return f"append {session.append.append_id}" if session.HasField("append") else ""


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    while piece := source.read(READ_BYTES):
        yield piece


def _label(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator:
        raise CliError(f"--label {text}: write KEY=VALUE", 2)
    return key, value
