"""The command `tactic`."""

from tactic.service.cli._main import main

__all__ = ["main"]
