"""keywise: attention without and with statistics."""

from __future__ import annotations

import numpy as np

import keywise as kw
from benchmarks.backends.backend import Backend
from benchmarks.inputs import Inputs, to_numpy

TOP_K = 8
SEGMENTS = 64


def prepare_attend(inputs: Inputs, _threads: int) -> Backend:
    """Prepare `kw.attend`."""
    mask = inputs.mask
    return Backend(lambda: kw.attend(inputs.query, inputs.key, inputs.value, mask=mask))


def prepare_attention_stats(inputs: Inputs, _threads: int) -> Backend:
    """Prepare `kw.attention_stats` with every statistic, the 8 heaviest keys and 64 segments among them."""
    mask = inputs.mask
    bounds = np.unique(np.linspace(0, inputs.case.keys, SEGMENTS + 1).astype(np.int64))
    return Backend(
        lambda: kw.attention_stats(
            inputs.query, inputs.key, inputs.value, mask=mask, top_k=TOP_K, segment_bounds=bounds
        ),
        lambda stats: to_numpy(stats.output),
    )
