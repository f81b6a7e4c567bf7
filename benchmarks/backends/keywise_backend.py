"""Two ways of keywise: with and without readings."""

from __future__ import annotations

import numpy as np

import keywise as kw
from benchmarks.backends.backend import Backend
from benchmarks.inputs import Inputs, as_numpy

SEGMENTS = 64


def attend(inputs: Inputs, _threads: int) -> Backend:
    """Attend, without readings."""
    mask = inputs.mask
    return Backend(lambda: kw.attend(inputs.query, inputs.key, inputs.value, mask=mask))


def attention_stats(inputs: Inputs, _threads: int) -> Backend:
    """Read everything: key mass, entropy, lse, the 8 heaviest keys of every row, 64 segments."""
    mask = inputs.mask
    bounds = np.unique(np.linspace(0, inputs.case.keys, SEGMENTS + 1).astype(np.int64))
    return Backend(
        lambda: kw.attention_stats(inputs.query, inputs.key, inputs.value, mask=mask, top_k=8, segment_bounds=bounds),
        lambda stats: as_numpy(stats.output),
    )
