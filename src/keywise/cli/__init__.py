"""The command line: a thin layer over everything else.

A file per command or group of commands; `keywise tune` and `keywise bench` come with what they run.
"""

import io
import logging
import os
import sys
import warnings
from importlib.util import find_spec

from keywise.cli.exits import FAILURE, INTERRUPTED, USER_MISTAKE
from keywise.cli.terminal import say


def main() -> None:
    """Run the command line: exit code 0 is success, 1 a failure, 2 a mistake of the user, 3 findings, 130 Ctrl-C."""
    if missing := [name for name in ("typer", "rich") if find_spec(name) is None]:
        say(f'the command line needs {" and ".join(missing)}; install with `pip install "keywise[app]"`')
        sys.exit(USER_MISTAKE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a document may hold what this terminal cannot show
    # Libraries warn with lines of their source; what a user has to know is said in keywise's words.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        from keywise.cli.application import application  # noqa: PLC0415 - needs typer, and Ctrl-C may come

        application()()
    except KeyboardInterrupt:
        code: object = INTERRUPTED
    except SystemExit as ending:
        code = ending.code
    except OSError as error:
        _discard_output()
        say(f"{error.filename or 'standard output'} cannot be used: {error.strerror or error}")
        code = FAILURE
    if code == INTERRUPTED:
        say("interrupted")
    sys.exit(code)  # type: ignore[arg-type]


def _discard_output() -> None:
    """Send what is left in the buffer of stdout nowhere, so that the interpreter's end does not fail on it again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
