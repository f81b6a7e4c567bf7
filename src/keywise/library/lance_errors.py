"""Errors of Lance as errors of keywise."""

from __future__ import annotations

from types import TracebackType
from typing import Final

from keywise.errors import FormatError, KeywiseError, OptionError

MAX_REASON_CHARACTERS: Final = 300
_LANCE_ERRORS: Final = (OSError, ValueError, TypeError, RuntimeError, KeyError, MemoryError)
_PANIC: Final = "PanicException"
"""Name of the exceptions of Rust's panics. They are no `Exception`, and their types cannot be imported."""


class convert_lance_errors:  # noqa: N801 - used like a function
    """Raise Lance's errors inside a block as errors of keywise.

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

    def __init__(self, path: str, rule: str, *, where: str | None = None) -> None:
        self._path = path
        self._rule = rule
        self._where = where

    def __enter__(self) -> None:
        """Begin the block."""

    def __exit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        """Convert an error that ends the block."""
        if isinstance(error, KeywiseError):
            return
        if isinstance(error, _LANCE_ERRORS) or type(error).__name__ == _PANIC:
            assert error is not None
            raise self._convert(error) from error

    def _convert(self, error: BaseException) -> KeywiseError:
        reason = read_reason(error)
        if self._where is not None:
            rule = "must be Lance SQL that holds or not for every row"
            return OptionError("where", rule, got=self._where, remedy=reason)
        return FormatError("path", f"{self._path!r} {self._rule}", remedy=reason)


def read_reason(error: BaseException) -> str:
    """Return the message of an error of Lance in a line, without places in Lance's source."""
    reason = " ".join(str(error).partition(", /")[0].split()) or type(error).__name__
    return reason if len(reason) <= MAX_REASON_CHARACTERS else f"{reason[:MAX_REASON_CHARACTERS]}..."
