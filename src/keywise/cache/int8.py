"""Keys and values in int8: multiples of a float32 scale per token and head."""

from __future__ import annotations

import numpy as np

from keywise.attention.arrays import HostArray
from keywise.errors import OptionError

MAX_INT8 = np.float32(127)


def quantise(name: str, array: HostArray) -> HostArray:
    """Round keys or values to int8 with a scale per token and head.

    A scale is 1/127 of the largest magnitude of its token and head, so the error of an element is at most half a scale.

    Parameters
    ----------
    name : str
        The argument's name.
    array : HostArray [batch, heads, tokens, head_dim]
        Finite floats.

    Returns
    -------
    HostArray
        int8 of the same shape, with scales [batch, heads, tokens].

    Raises
    ------
    OptionError
        The array contains NaN, infinity or a number beyond float32.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.arrays import as_host_array
    >>> key = as_host_array("key", np.array([[[[1.0, -2.54, 0.3]]]], np.float32))
    >>> quantise("key", key).data.tolist()
    [[[[50, -127, 15]]]]
    """
    floats = array.floats(np.float32)
    largest = np.abs(floats).max(axis=3)
    if not np.isfinite(largest).all():
        raise OptionError(name, "must be finite in float32 for an int8 cache, got NaN, infinity or a larger number")
    scale = largest / MAX_INT8
    # A token of zeros has scale 0, which must not divide.
    multiples = np.rint(floats / np.where(scale == 0, np.float32(1), scale)[..., None])
    return HostArray(np.clip(multiples, -MAX_INT8, MAX_INT8).astype(np.int8), "int8", array.like, scale)
