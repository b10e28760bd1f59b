"""What every command shares: settings, the front end's address, a connection."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from tactic.service.client import TacticClient
from tactic.service.config import ConfigError, Loaded, load_settings
from tactic.service.launch import read_state

CONNECT_TIMEOUT_S = 3.0

Result = TypeVar("Result")


class CliError(Exception):
    """A command cannot go on; `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Options:
    """The options before the command."""

    config_file: Path | None
    flags: dict[str, Any]
    given_address: str

    def load(self, flags: dict[str, Any] | None = None) -> Loaded:
        """Reads the settings; `flags` are the command's own, and those that are None count as not given."""
        own = {name: value for name, value in (flags or {}).items() if value is not None}
        return load_settings(self.flags | own, self.config_file)

    def address(self) -> str:
        """host:port of the front end: as given, else that of the running deployment, else as configured."""
        if self.given_address:
            return self.given_address
        settings = self.load().settings
        state = read_state(settings.state_dir)
        if state and state.addresses:
            return state.addresses[0]
        return f"{settings.frontend.host}:{settings.frontend.port}"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[TacticClient]:
        """Opens a client; says at once, not after the client's patience, when nothing listens."""
        address = self.address()
        host, _, port = address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            writer.close()
        except (OSError, TimeoutError, ValueError, OverflowError):
            raise CliError(
                f"no front end answers at {address}: start one with `tactic up`, or name it with --address", 3
            ) from None
        async with TacticClient(address) as client:
            yield client


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Runs an asynchronous command body."""
    return asyncio.run(coroutine)


def options(context: typer.Context) -> Options:
    """Returns the options before the command."""
    found = context.obj
    assert isinstance(found, Options)
    return found


def install_options(app: typer.Typer) -> None:
    """Adds the options before the command."""

    @app.callback()
    def before(
        context: typer.Context,
        config: Annotated[
            Path | None,
            typer.Option(help="TOML file with settings [default: $TACTIC_CONFIG, then ./tactic.toml]."),
        ] = None,
        state_dir: Annotated[
            Path | None, typer.Option(help="Directory of the deployment's data and logs.")
        ] = None,
        setting: Annotated[
            list[str] | None,
            typer.Option(
                "--set",
                metavar="NAME=VALUE",
                help="Any setting, as `tactic config show` names it. Repeatable.",
            ),
        ] = None,
        address: Annotated[
            str, typer.Option(metavar="HOST:PORT", envvar="TACTIC_ADDRESS", help="Front end to talk to.")
        ] = "",
    ) -> None:
        flags: dict[str, Any] = dict(_assignment(each) for each in setting or [])
        if state_dir is not None:
            flags["state_dir"] = state_dir
        context.obj = Options(config, flags, address)


def _assignment(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"--set {text}: write NAME=VALUE, for example --set index.threshold=0.8")
    return name.strip(), value
