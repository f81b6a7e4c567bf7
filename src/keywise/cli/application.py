"""The application: every command under its name."""

from typing import Annotated

import typer

import keywise
from keywise.cli import cache, library
from keywise.cli.ask import ASK_EXAMPLES, ask
from keywise.cli.check import CHECK_EXAMPLES, check
from keywise.cli.command import Command
from keywise.cli.info import show_info
from keywise.cli.terminal import write
from keywise.cli.tune import TUNE_EXAMPLES, tune


def make_application() -> typer.Typer:
    """Return the command line with all its commands."""
    application = typer.Typer(
        name="keywise", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    application.callback()(define_common_options)
    application.command(cls=Command, epilog=ASK_EXAMPLES)(ask)
    application.command(cls=Command, epilog=CHECK_EXAMPLES)(check)
    application.command("info", cls=Command)(show_info)
    application.command(cls=Command, epilog=TUNE_EXAMPLES)(tune)

    library_commands = typer.Typer(no_args_is_help=True, help=library.HELP, epilog=library.EXAMPLES)
    for name, command in library.COMMANDS.items():
        library_commands.command(name, cls=Command)(command)
    application.add_typer(library_commands, name="library")

    cache_commands = typer.Typer(no_args_is_help=True, help=cache.HELP)
    for name, command in cache.COMMANDS.items():
        cache_commands.command(name, cls=Command)(command)
    application.add_typer(cache_commands, name="cache")
    return application


def print_version(requested: bool) -> None:
    """Print the version and exit, if requested."""
    if requested:
        write(f"keywise {keywise.__version__}\n")
        raise typer.Exit


def define_common_options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Answer questions about documents and show the sentences that support the answers."""
