"""Checks that several kinds of arguments share; each refusal names the argument."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.errors import DtypeError, ShapeError


def as_integer_array(name: str, value: Any) -> Array:
    """Take an array of whole numbers."""
    taken = as_host_array(name, value)
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
