"""Run the command line in tests."""

from __future__ import annotations

import signal
import sys
from typing import Any

from typer.testing import CliRunner

from keywise.cli.application import make_application

PROCESS = (sys.executable, "-m", "keywise")
"""The command that starts a process of `keywise`; arguments follow."""


def run(*arguments: object) -> Any:
    """Run a command in this process, and return its exit code and output."""
    return CliRunner().invoke(make_application(), [str(argument) for argument in arguments])


def restore_control_c() -> None:
    """Restore the default handler of Ctrl-C for child processes.

    Tests that run in the background ignore it, and children inherit that.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
