"""tactic up, down, status."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tactic.service.cli._admin import WORKER_COLUMNS, worker_rows
from tactic.service.cli._context import CliError, Options, options, run
from tactic.service.cli._output import note, plain, print_json, print_table, progress, say
from tactic.service.client import TacticError
from tactic.service.config import Settings
from tactic.service.launch import Deployment, DeploymentState, is_serving, read_state, start, stop

WATCH_S = 1.0


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command()(up)
    app.command()(down)
    app.command()(status)


def up(
    context: typer.Context,
    model: Annotated[Path | None, typer.Option(help="Directory of a Hugging Face checkpoint.")] = None,
    model_name: Annotated[
        str | None, typer.Option(help="Name to serve it under [default: the directory's].")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Interface of the front end.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the front end; 0 lets the system pick one.")
    ] = None,
    context_length: Annotated[
        int | None, typer.Option(help="Most positions of a request [default: the model's].")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu.")] = None,
    decode_workers: Annotated[int | None, typer.Option(help="Engines that sessions are spread over.")] = None,
    clustering_workers: Annotated[int | None, typer.Option(help="Workers that refresh the index.")] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground", "-f", help="Stay, and stop everything on Ctrl-C.")
    ] = False,
) -> None:
    """Start a deployment on this machine and return when it serves.

    Redis (embedded unless TACTIC_REDIS_URL is set), the supervisor with Ray and the workers, and the front
    end go on in the background; `tactic down` stops them. Other settings: --set before `up`, TACTIC_*
    variables, or tactic.toml.
    """
    flags = {
        "engine.model_path": model,
        "engine.model_name": model_name,
        "frontend.host": host,
        "frontend.port": port,
        "engine.context_length": context_length,
        "engine.device": device,
        "workers.decode": decode_workers,
        "workers.clustering": clustering_workers,
    }
    settings = options(context).load(flags).settings
    began = time.monotonic()
    deployment = _start(settings)
    say(f"serving on {deployment.address} after {time.monotonic() - began:.0f} s")
    note(f"logs in {settings.state_dir / 'logs'}; `tactic chat` talks to it")
    if foreground:
        with deployment:
            _watch(deployment.state)


def _start(settings: Settings) -> Deployment:
    state = read_state(settings.state_dir)
    with progress() as show:
        if state is not None and state.dead:
            names = ", ".join(process.name for process in state.dead)
            note(f"{names} of the last deployment died; stopping the rest of it first")
            stop(settings.state_dir, show)
        return start(settings, show)


def _watch(state: DeploymentState) -> None:
    while not state.dead:
        time.sleep(WATCH_S)
    process = state.dead[0]
    raise CliError(f"{process.name} died; see {process.log}")


def down(context: typer.Context) -> None:
    """Stop the deployment of the state directory; sessions stay for the next `up`."""
    settings = options(context).load().settings
    with progress() as show:
        stopped = stop(settings.state_dir, show)
    if stopped:
        say("stopped " + ", ".join(process.name for process in reversed(stopped)))
    else:
        say(f"nothing runs in {settings.state_dir}")


def status(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Show what runs: processes, front ends, workers. Exit status 0 only if all of it is well."""
    chosen = options(context)
    state = read_state(chosen.load().settings.state_dir)
    if state is None and not chosen.given_address:
        raise CliError(
            f"nothing runs in {chosen.load().settings.state_dir}: start a deployment with `tactic up`", 3
        )
    state = state or DeploymentState(addresses=[chosen.given_address])
    report = {
        "processes": [
            {"name": each.name, "pid": each.pid, "alive": each.alive, "log": str(each.log)}
            for each in state.processes
        ],
        "frontends": [{"address": address, "serving": is_serving(address)} for address in state.addresses],
        **run(_deployment_stats(chosen)),
    }
    _print_status(report) if not as_json else print_json(report)
    if not _is_well(report):
        raise typer.Exit(1)


def _is_well(report: dict[str, Any]) -> bool:
    serving = [frontend["serving"] for frontend in report["frontends"]]
    # One that is still starting has no front end yet.
    return (
        bool(serving)
        and all(serving)
        and all(process["alive"] for process in report["processes"])
        and "error" not in report
        and not any(worker["state"] == "WORKER_STATE_DEAD" for worker in report["workers"])
    )


async def _deployment_stats(chosen: Options) -> dict[str, Any]:
    try:
        async with chosen.connect() as client:
            return {
                "models": [plain(model) for model in await client.list_models()],
                **plain(await client.get_stats()),
            }
    except (TacticError, CliError) as error:
        return {"error": str(error)}


def _print_status(report: dict[str, Any]) -> None:
    processes = report["processes"]
    print_table(
        ("process", "pid", "state", "log"),
        [
            (each["name"], str(each["pid"]), "running" if each["alive"] else "DEAD", each["log"])
            for each in processes
        ],
    )
    for frontend in report["frontends"]:
        state = "serving" if frontend["serving"] else "NOT serving"
        say(f"front end {frontend['address']}: {state}")
    if "error" in report:
        say(report["error"])
        return
    for model in report["models"]:
        say(f"model {model['name']}, context {model['context_length']:,}")
    say(f"{report['sessions']} sessions, {report['turns_running']} turns running")
    print_table(WORKER_COLUMNS, worker_rows(report["workers"]))
