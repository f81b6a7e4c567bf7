"""Checks of the files that a command will write, before its long work begins."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from keywise.errors import OptionError


def check_output_file(argument: str, name: str, *, inputs: Sequence[str] = ()) -> None:
    """Raise an error if a file cannot be written or would replace one that is read.

    Parameters
    ----------
    argument
        The option that names the file.
    name
        The file.
    inputs
        Files that must not be replaced.

    Raises
    ------
    OptionError
        The file cannot be written.
    """
    path = Path(name)
    if not name.strip():
        raise OptionError(argument, "must name a file", got=name)
    try:
        if path.is_dir():
            raise OptionError(argument, "must name a file", got=name, remedy="it is a folder: name a file in it")
        if not path.absolute().parent.is_dir():
            remedy = f"there is no folder {str(path.parent)!r}: create it first"
            raise OptionError(argument, "must name a file in an existing folder", got=name, remedy=remedy)
        if path.exists():
            if any(os.path.exists(other) and path.samefile(other) for other in inputs):
                remedy = "the document would be replaced"
                raise OptionError(argument, "must not name one of the FILEs", got=name, remedy=remedy)
            if not path.is_file() or not os.access(path, os.W_OK):
                raise OptionError(argument, "must name a file that can be replaced", got=name)
        with tempfile.TemporaryFile(dir=path.absolute().parent):
            pass  # raises OSError if no file can be created in the folder
    except OSError as error:
        rule = "must name a file that can be written"
        raise OptionError(argument, rule, got=name, remedy=str(error.strerror)) from error
