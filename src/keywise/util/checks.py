"""Checks of arguments that are numbers or bools."""

from __future__ import annotations

import reprlib
from typing import Any

import numpy as np

from keywise.errors import DtypeError, OptionError

MAX_TOKENS = 2**31 - 1
"""The kernels number tokens in 32 bits."""

_MAX_SHOWN_BITS = 4096
MAX_FLOAT = 1e30
"""The kernels compute with options in float32."""


def check_int(name: str, value: Any, *, minimum: int, maximum: int | None = MAX_TOKENS) -> int:
    """Return an integer within bounds.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        A Python or NumPy integer; a bool is refused.
    minimum, maximum : int
        The smallest and the largest value allowed; a maximum of None is no limit.

    Returns
    -------
    int
        The value as a Python integer.

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
        raise DtypeError(name, f"must be an integer, got {_describe(value)}")
    if value < minimum or (maximum is not None and value > maximum):
        limits = f"{minimum} or more" if maximum is None else f"between {minimum} and {maximum}"
        raise OptionError(name, f"must be {limits}, got {_describe(int(value))}")
    return int(value)


def check_float(name: str, value: Any) -> float:
    """Return a finite number as a float.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        A Python or NumPy number; a bool is refused.

    Returns
    -------
    float
        The value as a Python float.

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
        raise DtypeError(name, f"must be a number, got {_describe(value)}")
    # NumPy would round the limits to the value's dtype, which overflows in float16.
    number = float(value) if isinstance(value, np.floating) else value
    if not -MAX_FLOAT <= number <= MAX_FLOAT:
        raise OptionError(name, f"must be finite and at most {MAX_FLOAT:g} in size, got {_describe(value)}")
    return float(number)


def check_bool(name: str, value: Any) -> bool:
    """Return an argument that is a bool.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        A bool; numbers are refused.

    Returns
    -------
    bool
        The value.

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
        raise DtypeError(name, f"must be True or False, got {_describe(value)}")
    return value


def _describe(value: Any) -> str:
    """Return a value in short form for an error message."""
    if isinstance(value, int) and value.bit_length() > _MAX_SHOWN_BITS:
        # Python refuses to write longer integers out.
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, (int, float, complex, str, bytes, np.generic, type(None))):
        return reprlib.repr(value)
    return f"a {type(value).__name__}"
