"""Errors of other libraries, raised again as one kind of error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType

from keywise.errors import KeywiseError

_LONGEST_MESSAGE = 400
# Their messages alone say too little.
_TERSE = (LookupError, AttributeError, TypeError, ArithmeticError, MemoryError, RecursionError)


def translate_errors(make_error: Callable[[str], Exception], *passing: type[Exception]) -> AbstractContextManager[None]:
    """Raise one kind of error for whatever a library raises inside a ``with`` block.

    Libraries raise errors of any kind for files that are damaged: wrong types, divisions by zero, failed allocations,
    and panics of Rust, which are no `Exception`. Errors of keywise, interrupts and exits pass.

    Parameters
    ----------
    make_error : callable
        Returns the error to raise; takes a message of one line.
    *passing : type
        Other errors that pass.

    Examples
    --------
    >>> with translate_errors(ValueError):
    ...     {}["lamp"]
    Traceback (most recent call last):
    ValueError: KeyError: 'lamp'
    """
    return _Translation(make_error, (KeywiseError, *passing))


def describe_error(error: BaseException) -> str:
    """Return an error of any kind as one line.

    Parameters
    ----------
    error : BaseException
        The error.

    Examples
    --------
    >>> describe_error(ValueError("no lamp")), describe_error(ZeroDivisionError("division by zero"))
    ('no lamp', 'ZeroDivisionError: division by zero')
    """
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    if isinstance(error, _TERSE):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]} …"


class _Translation(AbstractContextManager[None]):
    def __init__(self, make_error: Callable[[str], Exception], passing: tuple[type[Exception], ...]) -> None:
        self._make_error = make_error
        self._passing = passing

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, self._passing):
            return
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise self._make_error(describe_error(error)) from error
