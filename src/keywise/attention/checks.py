"""Checks of array arguments that several modules share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from keywise.attention.arrays import FLOATS, Array, HostArray, as_host_array
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import MAX_FLOAT

_LISTS = (int, np.integer, list, tuple)


def as_integer_array(name: str, value: Any) -> Array:
    """Return an array of integers as NumPy, or raise.

    Parameters
    ----------
    name
        The argument's name.
    value
        An array of any integer type, an integer, or a list of them.

    Raises
    ------
    DtypeError
        The elements are not integers, or the list's rows differ in length.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.checks import as_integer_array
    >>> as_integer_array("mask.lengths", np.array([3, 5])).tolist()
    [3, 5]
    """
    array = as_host_array(name, _list_to_array(name, value, None) if isinstance(value, _LISTS) else value)
    # bfloat16 is stored as uint16.
    if array.data.dtype.kind not in "iu" or array.dtype == "bfloat16":
        raise DtypeError(name, f"must have integers as elements, got dtype {array.dtype}")
    return array.data


def _list_to_array(name: str, value: Any, dtype: npt.DTypeLike | None) -> Array:
    if isinstance(value, (list, tuple)) and not value:
        return np.empty(0, np.int64)
    try:
        return np.asarray(value, dtype)
    except Exception as error:
        raise DtypeError(name, f"must be an array or a list of numbers ({error})") from error


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


def check_sinks(sinks: Any, query_heads: int) -> Array:
    """Return an extra score per head in float64, or raise.

    Parameters
    ----------
    sinks
        An array of floats, or a list.
    query_heads
        Number of scores that are needed.

    Raises
    ------
    DtypeError, ShapeError, OptionError
        There is not one number per head, or one is NaN or too large.

    Examples
    --------
    >>> from keywise.attention.checks import check_sinks
    >>> check_sinks([0, 1.5], 2).tolist()
    [0.0, 1.5]
    """
    is_list = isinstance(sinks, (list, tuple))
    array = as_float_array("sinks", _list_to_array("sinks", sinks, np.float64) if is_list else sinks)
    if array.data.shape != (query_heads,):
        raise ShapeError(
            "sinks", f"must have one score per query head, [{query_heads}], got shape {list(array.data.shape)}"
        )
    scores = array.floats(np.float64)
    if not (scores <= MAX_FLOAT).all():
        worst = scores[~(scores <= MAX_FLOAT)][0]
        raise OptionError("sinks", f"must be at most {MAX_FLOAT:g} (-inf for none), got {worst}")
    return scores


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
