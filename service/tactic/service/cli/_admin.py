"""tactic models, workers, drain."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tactic.service.cli._context import options, run
from tactic.service.cli._output import plain, print_json, print_table, say

WORKER_COLUMNS = ("worker", "state", "device", "running", "KV used", "segments", "refreshes", "restarts")


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(models)
    app.command()(workers)
    app.command()(drain)


def models(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the models served."""

    async def body() -> list[dict[str, Any]]:
        async with options(context).connect() as client:
            return [plain(model) for model in await client.list_models()]

    found = run(body())
    if as_json:
        print_json(found)
        return
    rows = [
        (
            model["name"],
            model["context_length"],
            model["vocabulary_size"],
            "random" if model["random_weights"] else "",
        )
        for model in found
    ]
    print_table(("model", "context", "vocabulary", "weights"), rows)


def workers(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """List the workers with their counters."""

    async def body() -> list[dict[str, Any]]:
        async with options(context).connect() as client:
            return [plain(worker) for worker in await client.list_workers()]

    found = run(body())
    print_json(found) if as_json else print_table(WORKER_COLUMNS, worker_rows(found))


def drain(
    context: typer.Context, worker_id: Annotated[str, typer.Argument(help="As `tactic workers` names it.")]
) -> None:
    """Give a worker no new turns; its running ones end in peace."""

    async def body() -> None:
        async with options(context).connect() as client:
            await client.drain_worker(worker_id)

    run(body())
    say(f"{worker_id} is draining")


def worker_rows(found: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Returns the rows under WORKER_COLUMNS."""
    rows = []
    for worker in found:
        stats = worker.get("stats", {})
        rows.append(
            (
                worker["worker_id"],
                worker["state"].removeprefix("WORKER_STATE_").lower(),
                worker["device"],
                stats.get("running_requests", 0),
                _share(stats.get("kv_tokens_used", 0), stats.get("kv_tokens_total", 0)),
                stats.get("segments", 0),
                stats.get("refreshes_published", 0) or stats.get("jobs_done", 0),
                worker["restarts"],
            )
        )
    return rows


def _share(used: int, total: int) -> str:
    return f"{used / total:.1%} of {total:,}" if total else ""
