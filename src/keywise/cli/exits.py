"""Exit codes, and errors as one line on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager

from keywise.cli.terminal import print_notice
from keywise.errors import KeywiseError

FAILURE = 1
USER_MISTAKE = 2
FINDINGS = 3
INTERRUPTED = 130


@contextmanager
def report_errors() -> Iterator[None]:
    """Print an error of keywise as one line on stderr and exit with the code of a user's mistake.

    The line names the option or argument of the command instead of the Python argument.
    """
    import typer  # noqa: PLC0415 - optional: `main` says so when it is missing

    try:
        yield
    except KeywiseError as error:
        print_notice(error.describe(_name_on_command_line(error.argument)))
        raise typer.Exit(USER_MISTAKE) from error


def _name_on_command_line(argument: str) -> str:
    """Return how the running command spells an argument: ``--max-tokens`` or ``FILE``; else the argument itself."""
    import click  # noqa: PLC0415 - comes with typer

    context = click.get_current_context(silent=True)
    for parameter in context.command.params if context else ():
        if parameter.name == argument:
            is_option = parameter.param_type_name == "option"
            return parameter.opts[0] if is_option else parameter.make_metavar(context)
    return argument
