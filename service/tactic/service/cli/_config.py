"""tactic config."""

from typing import Annotated

import typer

from tactic.service.cli._context import options
from tactic.service.cli._output import print_json, print_table, say
from tactic.service.config import flat_values, render_toml


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    config = typer.Typer(help="Settings.", no_args_is_help=True)
    config.command()(show)
    app.add_typer(config, name="config")


def show(
    context: typer.Context,
    toml: Annotated[
        bool, typer.Option("--toml", help="Print a complete tactic.toml, with explanations.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every setting, its value, and where it came from.

    A flag wins over an environment variable (index.threshold is TACTIC_INDEX__THRESHOLD), that over the TOML
    file, that over the default.
    """
    loaded = options(context).load()
    values = flat_values(loaded.settings)
    if toml:
        say(render_toml(loaded.settings).rstrip())
    elif as_json:
        print_json(
            {
                name: {"value": value, "origin": loaded.origins.get(name, "default")}
                for name, value in values.items()
            }
        )
    else:
        rows = [(name, _shown(value), loaded.origins.get(name, "default")) for name, value in values.items()]
        print_table(("setting", "value", "from"), rows)


def _shown(value: object) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
