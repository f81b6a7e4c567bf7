"""Exit codes, and a user's mistake as one line on stderr."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from keywise.cli.terminal import say
from keywise.errors import KeywiseError

FAILURE, USER_MISTAKE, FINDINGS, INTERRUPTED = 1, 2, 3, 130

_ARGUMENT = re.compile(r"(?<![\w'\"/.-])(max_tokens|model|sentences|threads|top)=")


@contextmanager
def reported(positional: str = "") -> Iterator[None]:
    """Turn a user's mistake into one line on stderr and an exit code; `positional` is an argument, not an option."""
    import typer  # noqa: PLC0415 - optional: `main` says so when it is missing

    try:
        yield
    except KeywiseError as error:

        def option(match: re.Match[str]) -> str:
            return f"{match[1].upper()}=" if match[1] == positional else f"--{match[1].replace('_', '-')}="

        # The library names its arguments; here they are options.
        say(_ARGUMENT.sub(option, str(error)))
        raise typer.Exit(USER_MISTAKE) from error
