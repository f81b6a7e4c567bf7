"""The class of every command, which reports errors of keywise."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperCommand

from keywise.cli.exits import USER_MISTAKE
from keywise.cli.terminal import print_notice
from keywise.errors import KeywiseError

# Python arguments that have another name in a command.
_OTHER_NAMES = {"source": "model", "encode": "semantic"}
_ASK_OPTIONS = {"model", "max_tokens", "sentences", "semantic", "dtype", "html"}


def describe_option(argument: str) -> str:
    """Return the name on the command line of a Python argument that a conversation or a list of questions reports."""
    name = _OTHER_NAMES.get(argument, argument)
    return f"--{name.replace('_', '-')}" if name in _ASK_OPTIONS else name


@contextmanager
def rename_argument(name: str, new_name: str) -> Iterator[None]:
    """Let errors inside the block name another argument, where a command has one of the same name."""
    try:
        yield
    except KeywiseError as error:
        if error.argument == name:
            error.argument = new_name
        raise


class Command(TyperCommand):
    """A command that prints errors of keywise as one line.

    The line names the option or argument of the command instead of the Python argument. The exit code is that of a
    user's mistake.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.ctx = ctx  # so that the usage is shown
            raise
        except KeywiseError as error:
            print_notice(error.describe(self._name_on_command_line(error.argument)))
            raise typer.Exit(USER_MISTAKE) from error

    def _name_on_command_line(self, argument: str) -> str:
        """Return this command's name of an argument, such as ``--max-tokens`` or ``FILE``."""
        names = {parameter.name for parameter in self.params}
        name = argument if argument in names else _OTHER_NAMES.get(argument, argument)
        for parameter in self.params:
            if parameter.name != name:
                continue
            if parameter.param_type_name == "option":
                return str(parameter.opts[0])
            return str(parameter.metavar or argument.upper())
        return argument
