"""The application: every command under its name."""

from collections.abc import Callable
from typing import Annotated

import typer

import keywise
from keywise.cli import cache, library, models
from keywise.cli.align import ALIGN_EXAMPLES, align
from keywise.cli.ask import ASK_EXAMPLES, ask
from keywise.cli.check import CHECK_EXAMPLES, check
from keywise.cli.command import Command
from keywise.cli.info import show_info
from keywise.cli.serve import SERVE_EXAMPLES, serve
from keywise.cli.terminal import write
from keywise.cli.transcribe import TRANSCRIBE_EXAMPLES, transcribe
from keywise.cli.translate import TRANSLATE_EXAMPLES, translate
from keywise.cli.tune import TUNE_EXAMPLES, tune


def make_application() -> typer.Typer:
    """Return the command line with all its commands."""
    application = typer.Typer(
        name="keywise", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
    )
    application.callback()(define_common_options)
    application.command(cls=Command, epilog=ASK_EXAMPLES)(ask)
    application.command(cls=Command, epilog=CHECK_EXAMPLES)(check)
    application.command(cls=Command, epilog=ALIGN_EXAMPLES)(align)
    application.command(cls=Command, epilog=TRANSLATE_EXAMPLES)(translate)
    application.command(cls=Command, epilog=TRANSCRIBE_EXAMPLES)(transcribe)
    application.command("info", cls=Command)(show_info)
    application.command(cls=Command, epilog=SERVE_EXAMPLES)(serve)
    application.command(cls=Command, epilog=TUNE_EXAMPLES)(tune)

    groups: dict[str, tuple[dict[str, Callable[..., None]], str, str | None]] = {
        "library": (library.COMMANDS, library.HELP, library.EXAMPLES),
        "models": (models.COMMANDS, models.HELP, models.EXAMPLES),
        "cache": (cache.COMMANDS, cache.HELP, None),
    }
    for group, (commands, help_text, examples) in groups.items():
        subcommands = typer.Typer(no_args_is_help=True, help=help_text, epilog=examples)
        for name, command in commands.items():
            subcommands.command(name, cls=Command)(command)
        application.add_typer(subcommands, name=group)
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
