"""JAX: dot_product_attention, compiled for the CPU; its threads are the CPUs that the process may use."""

# ruff: noqa: PLC0415  (jax is slow to import, or absent: only calls need it)

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from benchmarks.backends.backend import Backend, refuse_large_weights, visible
from benchmarks.inputs import Inputs, as_numpy


def attention(inputs: Inputs, _threads: int) -> Backend:
    """Compile for arrays [batch, tokens, heads, head_dim]; its `is_causal` counts from the first key."""
    import jax

    refuse_large_weights(inputs)
    case = inputs.case
    arrays = [jax.numpy.asarray(np.ascontiguousarray(array.swapaxes(1, 2))) for array in inputs.arrays]
    options: dict[str, Any] = {}
    if case.square_causal:
        options["is_causal"] = True
    elif case.hides:
        options["mask"] = jax.numpy.asarray(as_numpy(visible(inputs)))[None, None]
    compiled = jax.jit(partial(jax.nn.dot_product_attention, **options)).lower(*arrays).compile()
    return Backend(
        lambda: compiled(*arrays).block_until_ready(),
        lambda result: np.asarray(result).swapaxes(1, 2),
    )
