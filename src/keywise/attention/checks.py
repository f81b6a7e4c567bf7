"""Checks of array arguments that several modules share."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.attention.arrays import FLOATS, Array, HostArray, as_host_array
from keywise.errors import DtypeError, ShapeError


def as_integer_array(name: str, value: Any) -> Array:
    """Return an array of integers as NumPy, or raise.

    Parameters
    ----------
    name
        The argument's name.
    value
        An array of any integer type.

    Raises
    ------
    DtypeError
        The elements are not integers.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.checks import as_integer_array
    >>> as_integer_array("mask.lengths", np.array([3, 5])).tolist()
    [3, 5]
    """
    array = as_host_array(name, value)
    # By the name of the type: bfloat16 is stored as uint16.
    if not array.dtype.startswith(("int", "uint")):
        raise DtypeError(name, f"must have integers as elements, got dtype {array.dtype}")
    return array.data


def as_float_array(name: str, value: Any) -> HostArray:
    """Return an array of floats as a `HostArray`, or raise.

    Parameters
    ----------
    name
        The argument's name.
    value
        An array of a float type that keywise knows.

    Raises
    ------
    DtypeError
        The elements are of another type.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.checks import as_float_array
    >>> as_float_array("sinks", np.zeros(4, np.float16)).dtype
    'float16'
    """
    array = as_host_array(name, value)
    if array.dtype not in FLOATS:
        raise DtypeError(name, f"must have dtype {', '.join(FLOATS[:-1])} or {FLOATS[-1]}, got {array.dtype}")
    return array


def broadcast(name: str, data: Array, shape: tuple[int, ...]) -> Array:
    """Return the array broadcast to a shape by zero strides, or raise.

    Parameters
    ----------
    name
        The argument's name.
    data
        A NumPy array.
    shape
        The target shape.

    Raises
    ------
    ShapeError
        The array does not broadcast to the shape.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.checks import broadcast
    >>> broadcast("bias", np.zeros((1, 3)), (2, 3)).shape
    (2, 3)
    """
    try:
        return np.broadcast_to(data, shape)
    except ValueError as error:
        raise ShapeError(name, f"must broadcast to {list(shape)}, got shape {list(data.shape)}") from error
