"""The arrays of a case, and its result by the definition."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import keywise as kw
from benchmarks.cases import Case

CHECKED_QUERIES = 64
"""Queries whose outputs are compared with the definition, the last ones."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """A case's arrays: torch tensors [batch, heads, tokens, head_dim] of its dtype."""

    case: Case
    query: Any
    key: Any
    value: Any

    @property
    def mask(self) -> kw.Mask:
        """The visible keys, as keywise describes them."""
        window = self.case.window
        return kw.Mask(causal=self.case.causal, window=None if window is None else (window - 1, None))

    @property
    def arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Query, key and value as NumPy arrays that share the tensors' memory."""
        return to_numpy(self.query), to_numpy(self.key), to_numpy(self.value)


def to_numpy(tensor: Any) -> NDArray[Any]:
    """Return a NumPy array over the memory of a torch tensor.

    bfloat16 becomes the type of that name in ml_dtypes.

    Examples
    --------
    >>> import torch
    >>> from benchmarks.inputs import to_numpy
    >>> to_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype(bfloat16)
    """
    import torch

    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()  # type: ignore[no-any-return]
    import ml_dtypes

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]


def make_inputs(case: Case) -> Inputs:
    """Draw a case's inputs, the same ones at every call.

    Each query resembles its own key, as in a model: an implementation that is off by one key, or puts the diagonal
    elsewhere, returns another result.

    Examples
    --------
    >>> from benchmarks.cases import Case
    >>> from benchmarks.inputs import make_inputs
    >>> make_inputs(Case("float32", 1, 4, 2, 3, 5, 8)).key.shape
    torch.Size([1, 2, 5, 8])
    """
    import torch

    dtype = getattr(torch, case.dtype)
    generator = torch.Generator().manual_seed(0)
    key_shape = (case.batch, case.key_heads, case.keys, case.head_dim)
    query = torch.randn(case.batch, case.query_heads, case.queries, case.head_dim, generator=generator)
    key = torch.randn(key_shape, generator=generator)
    value = torch.randn(key_shape, generator=generator)
    key[:, :, case.keys - case.queries :] += query[:, :: case.query_heads // case.key_heads]
    return Inputs(case, *(copy_to_numpy_memory(array.to(dtype)) for array in (query, key, value)))


def copy_to_numpy_memory(tensor: Any) -> Any:
    """Copy a torch tensor to memory that NumPy allocates.

    NumPy asks for huge pages and torch does not; every backend should read pages of the same size.
    """
    import torch

    return torch.from_numpy(tensor.view(torch.uint8).numpy().copy()).view(tensor.dtype)


def compute_reference(inputs: Inputs) -> NDArray[np.float64]:
    """Compute the outputs of the last queries from the definition, in float64.

    Returns
    -------
    array
        Outputs [batch, query_heads, at most `CHECKED_QUERIES`, head_dim].
    """
    case = inputs.case
    heads_per_key_head = case.query_heads // case.key_heads
    first_query = max(case.queries - CHECKED_QUERIES, 0)
    outputs = []
    # All queries, or all heads at once, would need queries x keys float64 numbers for each.
    for key_head in range(case.key_heads):
        heads = slice(key_head * heads_per_key_head, (key_head + 1) * heads_per_key_head)
        query = inputs.query[:, heads, first_query:].double()
        key = inputs.key[:, key_head : key_head + 1].double()
        value = inputs.value[:, key_head : key_head + 1].double()
        with kw.using("reference"):
            outputs.append(kw.attend(query, key, value, mask=inputs.mask).numpy())
    return np.concatenate(outputs, axis=1)
