"""The command line: one file per command or group of commands."""

import io
import logging
import os
import sys
import warnings
from importlib.util import find_spec
from types import TracebackType

from keywise.cli.exits import FAILURE, INTERRUPTED, USER_MISTAKE
from keywise.cli.terminal import print_notice
from keywise.errors import KeywiseError
from keywise.util.foreign_errors import describe_error


def main() -> None:
    """Run the command line.

    The exit code is 0 for success, 1 for a failure, 2 for a user's mistake, 3 for findings and 130 for Ctrl-C.
    """
    if missing := [name for name in ("typer", "rich") if find_spec(name) is None]:
        print_notice(f'the command line needs {" and ".join(missing)}; install with `pip install "keywise[app]"`')
        sys.exit(USER_MISTAKE)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a document may contain characters that this terminal cannot show
    # Libraries print warnings with lines of their source; keywise reports what a user needs to know itself.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    if not os.environ.get("KEYWISE_TRACEBACK"):
        sys.excepthook = _report_unforeseen
    try:
        from keywise.cli.application import make_application  # noqa: PLC0415 - needs typer, and Ctrl-C may come

        make_application()()
    except KeyboardInterrupt:
        code: object = INTERRUPTED
    except SystemExit as ending:
        code = ending.code
    except KeywiseError as error:  # commands report their own; this one is of an import
        print_notice(str(error))
        code = USER_MISTAKE
    except OSError as error:
        _discard_output()
        print_notice(f"{error.filename or 'standard output'} cannot be used: {error.strerror or error}")
        code = FAILURE
    if code == INTERRUPTED:
        print_notice("interrupted")
    sys.exit(code)  # type: ignore[arg-type]


def _report_unforeseen(kind: type[BaseException], error: BaseException, _traceback: TracebackType | None) -> None:
    """Print an error that no command expects in one line; Python ends with exit code 1 afterwards."""
    name = kind.__name__
    message = describe_error(error).removeprefix(f"{name}: ")
    print_notice(f"internal error: {name}: {message} (KEYWISE_TRACEBACK=1 shows where)")


def _discard_output() -> None:
    """Discard the buffered output, which the interpreter would fail to write again at exit."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, sys.stdout.fileno())
    os.close(null_device)
