"""Options that name one of several things."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from keywise.errors import OptionError


def check_choices(argument: str, names: Sequence[str], choices: Iterable[str]) -> None:
    """Raise an error unless all names are among the choices.

    Parameters
    ----------
    argument
        The argument that holds the names.
    names
        The user's names.
    choices
        Names that exist.

    Raises
    ------
    OptionError
        A name is unknown.

    Examples
    --------
    >>> from benchmarks.choices import check_choices
    >>> check_choices("task", ["step"], ["question", "step"])
    """
    choices = list(choices)
    for name in names:
        if name not in choices:
            raise OptionError(argument, f"must be one of {', '.join(choices)}", got=name)
