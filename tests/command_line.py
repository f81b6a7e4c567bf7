"""The command line as tests run it."""

from __future__ import annotations

import sys
from typing import Any

from typer.testing import CliRunner

from keywise.cli.application import application

PROCESS = (sys.executable, "-m", "keywise")
"""What begins a process of `keywise`; arguments follow."""


def run(*arguments: object) -> Any:
    """Run a command in this process: its exit code, and what it wrote to stdout and stderr."""
    return CliRunner().invoke(application(), [str(argument) for argument in arguments])
