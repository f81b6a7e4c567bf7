"""Errors of Lance as errors of keywise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from keywise.errors import FormatError, KeywiseError, OptionError

MAX_REASON_CHARACTERS: Final = 300
_PANIC: Final = "PanicException"
"""Name of the exceptions of Rust's panics. They are no `Exception`, and their types cannot be imported."""


@contextmanager
def convert_lance_errors(path: str, rule: str, *, where: str | None = None) -> Iterator[None]:
    """Raise Lance's errors inside the block as errors of keywise.

    Parameters
    ----------
    path
        The library.
    rule
        What is said of it, such as "cannot be read".
    where
        SQL that is evaluated in the block: files are verified before, so it is at fault.

    Raises
    ------
    OptionError
        Lance failed, and there is SQL.
    FormatError
        Lance failed otherwise.
    """
    try:
        yield
    except KeywiseError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, MemoryError) as error:
        raise _convert(error, path, rule, where) from error
    except BaseException as error:
        if type(error).__name__ != _PANIC:
            raise
        raise _convert(error, path, rule, where) from error


def read_reason(error: BaseException) -> str:
    """Return the message of an error of Lance in a line, without places in Lance's source."""
    reason = " ".join(str(error).partition(", /")[0].split()) or type(error).__name__
    return reason if len(reason) <= MAX_REASON_CHARACTERS else f"{reason[:MAX_REASON_CHARACTERS]}..."


def _convert(error: BaseException, path: str, rule: str, where: str | None) -> KeywiseError:
    if where is not None:
        return OptionError(
            "where", "must be Lance SQL that holds or not for every row", got=where, remedy=read_reason(error)
        )
    return FormatError("path", f"{path!r} {rule}", remedy=read_reason(error))
