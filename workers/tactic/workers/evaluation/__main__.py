"""`python -m tactic.workers.evaluation`: what sparse attention costs in quality and saves in reads."""

from __future__ import annotations

import argparse
import signal
import sys

from tactic.workers.evaluation import accuracy, calibrate, engine
from tactic.workers.evaluation.analysis.commands import register
from tactic.workers.evaluation.errors import EvaluationError

COMMANDS = {
    accuracy: "answers and reads of every method, by task and context",
    engine: "the same tasks through SGLang with the tactic backend",
    calibrate: "find the threshold and the settings for a checkpoint, and write a configuration file",
}
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130


def main() -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tactic eval", description="Measures what Tactic costs in quality and saves in reads."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module, summary in COMMANDS.items():
        name = module.__name__.rpartition(".")[2]
        added = commands.add_parser(name, help=summary, description=summary)
        module.configure(added)
        added.set_defaults(run=module.run)
    register(commands)
    arguments = parser.parse_args()
    # Whoever stops us gets what was measured so far, as with Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status: int = arguments.run(arguments)
    except EvaluationError as error:
        print(f"tactic eval: {error}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
