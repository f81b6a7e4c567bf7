"""Checks that several kinds of arguments share; each refusal names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.attention.arrays import Array, take
from keywise.errors import DtypeError, OptionError, ShapeError

MAXIMUM_TOKENS = 2**31 - 1
LARGEST_NUMBER = 1e30
"""Kernels hold options in float32."""


def whole(name: str, value: Any, *, minimum: int, maximum: int = MAXIMUM_TOKENS) -> int:
    """Check a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DtypeError(f"{name}={value!r}: {name} is a whole number")
    if not minimum <= value <= maximum:
        raise OptionError(f"{name}={value}: {name} lies between {minimum} and {maximum}")
    return int(value)


def real(name: str, value: Any) -> float:
    """Check a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise DtypeError(f"{name}={value!r}: {name} is a number")
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise OptionError(f"{name}={value}: {name} is finite, at most {LARGEST_NUMBER:g} in size")
    return float(value)


def whole_numbers(name: str, value: Any) -> Array:
    """Take an array of whole numbers."""
    taken = take(name, value)
    # Judged by the name: bfloat16 travels as uint16.
    if not taken.dtype.startswith(("int", "uint")):
        raise DtypeError(f"{name} has dtype {taken.dtype}; it holds whole numbers")
    return taken.data


def broadcast(name: str, data: Array, shape: tuple[int, ...]) -> Array:
    """Broadcast an array to a shape by zero strides."""
    try:
        return np.broadcast_to(data, shape)
    except ValueError as error:
        raise ShapeError(f"{name} has shape {list(data.shape)}, which does not broadcast to {list(shape)}") from error
