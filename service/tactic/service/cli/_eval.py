"""tactic eval: hands over to the workers' package, which may import torch."""

import subprocess
import sys

import typer

HELP = "Measure what sparse attention costs in quality and saves in reads, on your checkpoint."
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(name="eval", help=HELP, add_help_option=False, context_settings=PASSED_ON)(evaluate)


def evaluate(context: typer.Context) -> None:
    """Runs `python -m tactic.workers.evaluation` with the arguments as they are."""
    command = [sys.executable, "-m", "tactic.workers.evaluation", *(context.args or ["--help"])]
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except BaseException:
            # It saves what it has.
            process.terminate()
            process.wait()
            raise
    raise typer.Exit(status)
