"""Two ways of keywise: with and without readings."""

from __future__ import annotations

import numpy as np

import keywise as kw
from keywise.bench.inputs import Inputs, as_numpy
from keywise.bench.rivals.way import Way

SEGMENTS = 64


def attend(inputs: Inputs, _threads: int) -> Way:
    """Attend, without readings."""
    mask = inputs.mask
    return Way(lambda: kw.attend(inputs.query, inputs.key, inputs.value, mask=mask))


def read(inputs: Inputs, _threads: int) -> Way:
    """Read everything: key mass, entropy, lse, the 8 heaviest keys of every row, 64 segments."""
    mask = inputs.mask
    bounds = np.unique(np.linspace(0, inputs.case.keys, SEGMENTS + 1).astype(np.int64))
    return Way(
        lambda: kw.read(inputs.query, inputs.key, inputs.value, mask=mask, top=8, segments=bounds),
        lambda reading: as_numpy(reading.output),
    )
