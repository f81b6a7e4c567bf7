"""How every command reports errors."""

from typing import Any

import typer
from typer.core import TyperCommand

from keywise.cli.exits import USER_MISTAKE
from keywise.cli.terminal import print_notice
from keywise.errors import KeywiseError

# Arguments of the library that a command spells otherwise.
_SPELLINGS = {"source": "model", "encode": "semantic"}


class Command(TyperCommand):
    """A command that prints an error of keywise as one line and exits with the code of a user's mistake.

    The line names the option or argument of the command instead of the Python argument.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeywiseError as error:
            print_notice(error.describe(self._name_on_command_line(error.argument)))
            raise typer.Exit(USER_MISTAKE) from error

    def _name_on_command_line(self, argument: str) -> str:
        """Return how this command spells an argument: ``--max-tokens`` or ``FILE``; else the argument itself."""
        name = _SPELLINGS.get(argument, argument)
        for parameter in self.params:
            if parameter.name == name:
                is_option = parameter.param_type_name == "option"
                return str(parameter.opts[0] if is_option else parameter.metavar or argument.upper())
        return argument
