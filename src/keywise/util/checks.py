"""Checks of plain arguments; each refusal names the argument, the rule and the value."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.errors import DtypeError, OptionError

MAX_TOKENS = 2**31 - 1
"""Kernels number tokens in 32 bits."""

MAX_FLOAT = 1e30
"""Kernels hold options in float32."""


def check_int(name: str, value: Any, *, minimum: int, maximum: int = MAX_TOKENS) -> int:
    """Return an integer within bounds, or raise.

    Parameters
    ----------
    name
        The argument's name.
    value
        Its value: a Python or NumPy integer, not a bool.
    minimum, maximum
        The least and largest value allowed.

    Raises
    ------
    DtypeError
        The value is not an integer.
    OptionError
        The value is out of bounds.

    Examples
    --------
    >>> check_int("top_k", 8, minimum=0)
    8
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DtypeError(name, "must be an integer", got=value)
    if not minimum <= value <= maximum:
        raise OptionError(name, f"must be between {minimum} and {maximum}", got=int(value))
    return int(value)


def check_float(name: str, value: Any) -> float:
    """Return a finite number as a float, or raise.

    Parameters
    ----------
    name
        The argument's name.
    value
        Its value: a Python or NumPy number, not a bool.

    Raises
    ------
    DtypeError
        The value is not a number.
    OptionError
        The value is not finite, or larger than `MAX_FLOAT`.

    Examples
    --------
    >>> check_float("scale", 0.125)
    0.125
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise DtypeError(name, "must be a number", got=value)
    if not -MAX_FLOAT <= value <= MAX_FLOAT:
        raise OptionError(name, f"must be finite and at most {MAX_FLOAT:g} in size", got=value)
    return float(value)


def check_bool(name: str, value: Any) -> bool:
    """Return True or False, or raise.

    Parameters
    ----------
    name
        The argument's name.
    value
        Its value; numbers are not accepted.

    Raises
    ------
    DtypeError
        The value is not a bool.

    Examples
    --------
    >>> check_bool("key_mass", True)
    True
    """
    if not isinstance(value, bool):
        raise DtypeError(name, "must be True or False", got=value)
    return value
