"""Keys and values in int8: a token's head is rounded to 255 steps of its own."""

from __future__ import annotations

import numpy as np

from keywise.attention.arrays import HostArray
from keywise.errors import OptionError

STEPS = np.float32(127)


def quantised(name: str, taken: HostArray) -> HostArray:
    """Round [batch, heads, tokens, head_dim] to whole multiples of a scale, the largest of every 127 of them.

    The error of an element is at most half a scale, 1/254 of the largest of its token and head.
    """
    floats = taken.floats(np.float32)
    largest = np.abs(floats).max(axis=3)
    if not np.isfinite(largest).all():
        raise OptionError(f"{name} holds NaN, infinity or numbers beyond float32; an int8 cache takes finite numbers")
    scale = largest / STEPS
    steps = np.rint(floats / np.where(scale == 0, np.float32(1), scale)[..., None])
    return HostArray(np.clip(steps, -STEPS, STEPS).astype(np.int8), "int8", taken.like, scale)
