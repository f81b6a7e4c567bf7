"""The function that `check_function` examines: its inputs, its calls, and what it should compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.attention.mask import Mask
from keywise.attention.problem import Problem, make_problem
from keywise.errors import ModelError

TOKENS = 37
FEW_TOKENS = 5
BATCH = 2
"""Sizes of the inputs: all prime, so that no two axes have the same size by chance."""


@dataclass(frozen=True, eq=False)
class FunctionUnderTest:
    """An attention function, what it should compute, and how to call it."""

    function: Callable[..., Any]
    mask: Mask
    """What it should apply by itself."""
    options: dict[str, Any]
    """`scale`, `softcap` and `sinks` that it should apply."""
    mask_argument: str | None
    query_heads: int
    key_heads: int
    head_dim: int
    dtype: str
    library: str
    """``"numpy"`` or ``"torch"``."""

    def draw_inputs(self, queries: int = TOKENS, keys: int = TOKENS, *, query_size: float = 1.0) -> list[Any]:
        """Return random query, key and value, the query multiplied by `query_size`."""
        generator = np.random.default_rng(3)
        shapes = [
            (BATCH, heads, tokens, self.head_dim)
            for heads, tokens in ((self.query_heads, queries), (self.key_heads, keys), (self.key_heads, keys))
        ]
        query, key, value = (generator.normal(size=shape) for shape in shapes)
        return [self.make_array(query * query_size), self.make_array(key), self.make_array(value)]

    def make_array(self, numbers: Array) -> Any:
        """Return an array of the library and dtype that the function is tested with."""
        if self.library == "numpy":
            return numbers.astype(self.dtype)
        torch = _import_torch()
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(getattr(torch, self.dtype))

    def make_mask_array(self, visible: Array) -> Any:
        """Return a boolean array of the function's library."""
        return visible if self.library == "numpy" else _import_torch().from_numpy(np.ascontiguousarray(visible))

    def make_mask(self, **fields: Any) -> Mask:
        """Return the function's own mask with further rules."""
        return Mask(causal=self.mask.causal, window=self.mask.window, **fields)

    def make_problem(self, inputs: list[Any], mask: Mask | None = None) -> Problem:
        """Return the problem that the function should solve."""
        return make_problem(*inputs, mask=mask or self.mask, bias=None, **self.options)

    def call(self, inputs: list[Any], visible: Array | None = None) -> Any:
        """Call the function and return its output unchanged."""
        options = {} if visible is None else {str(self.mask_argument): self.make_mask_array(visible)}
        output = self.function(*inputs, **options)
        return output[0] if isinstance(output, tuple) else output

    def compute_output(self, inputs: list[Any], visible: Array | None = None) -> Array:
        """Call the function and return its output as float64."""
        return to_float64(self.call(inputs, visible))


def to_float64(array: Any) -> Array:
    """Return an array of either library as float64, gradients dropped."""
    detached = array.detach() if hasattr(array, "detach") else array
    return as_host_array("output", detached).floats(np.float64)


def _import_torch() -> Any:
    try:
        import torch  # noqa: PLC0415 - slow to import, or absent
    except ImportError as error:
        raise ModelError(
            "arrays", f"must be 'numpy' because torch cannot be imported ({error})", remedy="pip install 'keywise[hf]'"
        ) from error
    return torch
