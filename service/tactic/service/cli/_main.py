"""Entry point: every failure is one clear message and an exit status."""

import signal
import sys
from types import FrameType

import typer

from tactic.service.cli import _admin, _chat, _config, _deployment, _eval, _session
from tactic.service.cli._context import CliError, install_options
from tactic.service.cli._output import note
from tactic.service.client import TacticError, UnavailableError
from tactic.service.config import ConfigError
from tactic.service.launch import LaunchError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_ANSWER = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

app = typer.Typer(
    help="Long-context LLM serving with adaptive sparse decode attention.",
    epilog="Exit status: 0 done, 1 refused or failed, 2 wrong usage or configuration, 3 nothing answers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
install_options(app)
_deployment.register(app)
_chat.register(app)
_session.register(app)
_admin.register(app)
_config.register(app)
_eval.register(app)


def main() -> None:
    """Runs the command line and exits."""
    # So that whoever stops us gets the same tidy end as Ctrl-C.
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except ConfigError as error:
        _fail(str(error), EXIT_USAGE)
    except UnavailableError as error:
        _fail(str(error), EXIT_NO_ANSWER)
    except CliError as error:
        _fail(str(error), error.status)
    except (LaunchError, TacticError, OSError) as error:
        _fail(str(error), EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(EXIT_TERMINATED)


def _fail(message: str, status: int) -> None:
    note(f"tactic: {message}")
    sys.exit(status)
