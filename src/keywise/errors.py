"""Errors of keywise: each names an argument, a rule, the value and a remedy."""

from __future__ import annotations

from typing import Any


class _Missing:
    """Mark an argument that was not passed."""


MISSING = _Missing()


class KeywiseError(Exception):
    """Report an argument that cannot be used, or an operation that failed.

    Parameters
    ----------
    argument : str
        Name of the argument or option at fault, as its caller writes it.
    rule : str
        A predicate about the argument, such as ``"must be an integer"``.
    got : object, optional
        The value that was passed; its ``repr`` is appended.
    remedy : str, optional
        How to correct it, appended after a semicolon.

    Attributes
    ----------
    argument : str
        As passed; the command line replaces it by the name of its option.

    Examples
    --------
    >>> error = KeywiseError("top_k", "must be an integer", got=2.5, remedy="round it")
    >>> str(error), error.argument
    ('top_k must be an integer, got 2.5; round it', 'top_k')
    """

    def __init__(self, argument: str, rule: str, *, got: object = MISSING, remedy: str = "") -> None:
        self.argument = argument
        predicate = rule if got is MISSING else f"{rule}, got {got!r}"
        self._predicate = f"{predicate}; {remedy}" if remedy else predicate
        super().__init__(self.describe(argument))

    def describe(self, subject: str) -> str:
        """Return the message with another name for the argument.

        Parameters
        ----------
        subject : str
            The name that the reader knows the argument by, such as ``"--top"``.

        Examples
        --------
        >>> KeywiseError("top_k", "must be 0 or more", got=-1).describe("--top")
        '--top must be 0 or more, got -1'
        """
        return f"{subject} {self._predicate}"

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled by a call with its message, which this constructor does not accept.
        return _restore, (type(self), self.argument, self._predicate, self.args)


def _restore(error_type: type[KeywiseError], argument: str, predicate: str, args: tuple[Any, ...]) -> KeywiseError:
    error = error_type(argument, predicate)
    error.args = args
    return error


class ShapeError(KeywiseError, ValueError):
    """Report an array whose shape does not fit the other arguments."""


class DtypeError(KeywiseError, TypeError):
    """Report an argument whose type or element type is not accepted."""


class OptionError(KeywiseError, ValueError):
    """Report an option whose value cannot be used."""


class TargetError(KeywiseError, RuntimeError):
    """Report that no kernel can run a call.

    The target is unknown, the CPU lacks a feature, an array is on another device, or a gradient is required.
    """


class FormatError(KeywiseError, ValueError):
    """Report a file that is damaged, empty or of a kind that cannot be read."""


class MissingFileError(FormatError, FileNotFoundError):
    """Report a file that does not exist."""


class ModelError(KeywiseError, RuntimeError):
    """Report a model that is missing or does not support an operation."""
