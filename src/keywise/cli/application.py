"""The application: every command under its name."""

from typing import Annotated

import typer

import keywise
from benchmarks.commands import COMMANDS as BENCH_COMMANDS
from keywise.cli import cache, library
from keywise.cli.ask import ASK_EXAMPLES, ask
from keywise.cli.check import CHECK_EXAMPLES, check
from keywise.cli.exits import reported
from keywise.cli.info import info
from keywise.cli.terminal import write
from keywise.cli.tune import TUNE_EXAMPLES, tune


def application() -> typer.Typer:
    """Put the command line together."""
    whole = typer.Typer(name="keywise", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    whole.callback()(every_command)
    whole.command(epilog=ASK_EXAMPLES)(reported()(ask))
    whole.command(epilog=CHECK_EXAMPLES)(reported(positional="model")(check))
    whole.command()(reported()(info))
    whole.command(epilog=TUNE_EXAMPLES)(reported()(tune))

    of_libraries = typer.Typer(no_args_is_help=True, help=library.HELP, epilog=library.EXAMPLES)
    for function in library.COMMANDS:
        of_libraries.command()(reported()(function))
    whole.add_typer(of_libraries, name="library")

    of_the_cache = typer.Typer(no_args_is_help=True, help=cache.HELP)
    for function in cache.COMMANDS:
        of_the_cache.command()(reported()(function))
    whole.add_typer(of_the_cache, name="cache")

    bench = typer.Typer(no_args_is_help=True, help="Time keywise against its rivals; results are checked first.")
    for function, epilogue in BENCH_COMMANDS:
        bench.command(epilog=epilogue)(reported()(function))
    whole.add_typer(bench, name="bench")
    return whole


def show_version(wanted: bool) -> None:
    """Show the version and end, if it is wanted."""
    if wanted:
        write(f"keywise {keywise.__version__}\n")
        raise typer.Exit


def every_command(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Ask documents, and see which sentences the model looked at."""
