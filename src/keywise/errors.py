"""Errors of keywise: each names the argument, what it must be, what was given and what to do."""

from __future__ import annotations

from typing import Any


class _Missing:
    """The type of `MISSING`: no value was given."""


MISSING = _Missing()


class KeywiseError(Exception):
    """Report something that keywise refuses to do, or could not do.

    Parameters
    ----------
    argument : str
        Name of the argument or option at fault, as its caller writes it.
    rule : str
        What the argument must be or may not do: ``"must be an integer"``.
    got : object, optional
        The value that was given; it is appended as its ``repr``.
    remedy : str, optional
        What to do about it, appended after a semicolon.

    Attributes
    ----------
    argument : str
        As given; the command line replaces it by the name of its option.

    Examples
    --------
    >>> error = KeywiseError("top_k", "must be an integer", got=2.5, remedy="round it")
    >>> str(error), error.argument
    ('top_k must be an integer, got 2.5; round it', 'top_k')
    """

    def __init__(self, argument: str, rule: str | None = None, *, got: object = MISSING, remedy: str = "") -> None:
        if rule is None:
            super().__init__(argument)
            self.argument, self._tail = "", argument
            return
        self.argument = argument
        tail = rule if got is MISSING else f"{rule}, got {got!r}"
        self._tail = f"{tail}; {remedy}" if remedy else tail
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
        return f"{subject} {self._tail}" if self.argument else self._tail

    def __reduce__(self) -> tuple[Any, ...]:
        # The message is already made up: unpickling must not build it again.
        return _restore, (type(self), self.argument, self._tail, self.args)


def _restore(kind: type[KeywiseError], argument: str, tail: str, args: tuple[Any, ...]) -> KeywiseError:
    error = kind.__new__(kind)
    error.argument, error._tail, error.args = argument, tail, args
    return error


class ShapeError(KeywiseError, ValueError):
    """Report an array whose shape does not fit the other arguments."""


class DtypeError(KeywiseError, TypeError):
    """Report an argument whose type or element type is not accepted."""


class OptionError(KeywiseError, ValueError):
    """Report an option whose value cannot be used."""


class TargetError(KeywiseError, RuntimeError):
    """Report that no kernel can run a call: unknown target, missing CPU feature, another device, gradients."""


class FormatError(KeywiseError, ValueError):
    """Report a file that is damaged, empty or of a kind that cannot be read."""


class MissingFileError(FormatError, FileNotFoundError):
    """Report a file that does not exist."""


class ModelError(KeywiseError, RuntimeError):
    """Report a model that is missing or cannot do what is asked of it."""
