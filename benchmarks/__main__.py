"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

import sys
import warnings
from importlib.util import find_spec


def main() -> None:
    """Run the command line.

    Exit codes are 0 for success, 1 for a failure, 2 for a user's error and 130 for Ctrl-C.
    """
    if missing := [name for name in ("typer", "rich") if find_spec(name) is None]:
        names = " and ".join(missing)
        sys.stderr.write(f'benchmarks: {names} must be installed; run `pip install "keywise[bench]"`\n')
        sys.exit(2)
    # Libraries warn with lines of their own source.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    from benchmarks.console import INTERRUPTED, print_error  # noqa: PLC0415 - needs typer

    try:
        from benchmarks.commands import make_application  # noqa: PLC0415 - needs typer, and Ctrl-C may come

        make_application()()
    except KeyboardInterrupt:
        exit_code: object = INTERRUPTED
    except SystemExit as exit_request:
        exit_code = exit_request.code
    if exit_code == INTERRUPTED:
        print_error("interrupted")
    sys.exit(exit_code)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
