"""JAX: `dot_product_attention`, compiled for the CPU."""

# ruff: noqa: PLC0415  (jax is slow to import, or absent: only calls need it)

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.backends.backend import Backend, make_visible_mask, refuse_large_weights
from benchmarks.inputs import Inputs, to_numpy


def prepare_attention(inputs: Inputs, _threads: int) -> Backend:
    """Compile the function for arrays [batch, tokens, heads, head_dim].

    Its `is_causal` is aligned to the upper left. It uses as many threads as the process has CPUs.
    """
    import jax

    refuse_large_weights(inputs)
    case = inputs.case
    arrays = [jax.numpy.asarray(np.ascontiguousarray(array.swapaxes(1, 2))) for array in inputs.arrays]
    options: dict[str, Any] = {}
    if case.is_square_causal:
        options["is_causal"] = True
    elif case.has_hidden_keys:
        options["mask"] = jax.numpy.asarray(to_numpy(make_visible_mask(inputs)))[None, None]
    compiled = jax.jit(partial(jax.nn.dot_product_attention, **options)).lower(*arrays).compile()
    return Backend(
        lambda: compiled(*arrays).block_until_ready(),
        lambda result: np.asarray(result).swapaxes(1, 2),
    )
