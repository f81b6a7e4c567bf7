"""The numbers of a case, and the definition's answer to them."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import keywise as kw
from benchmarks.cases import Case
from keywise.attention import reference
from keywise.attention.problem import make_problem

CHECKED_ROWS = 64


@dataclass(frozen=True, eq=False)
class Inputs:
    """A case's arrays, torch tensors [batch, heads, tokens, head_dim] of its dtype."""

    case: Case
    query: Any
    key: Any
    value: Any

    @property
    def mask(self) -> kw.Mask:
        """What the queries may see, in keywise's words."""
        window = self.case.window
        return kw.Mask(causal=self.case.causal, window=None if window is None else (window - 1, None))

    @property
    def arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Query, key and value as NumPy arrays that share the tensors' memory; bfloat16 through ml_dtypes."""
        return as_numpy(self.query), as_numpy(self.key), as_numpy(self.value)


def as_numpy(tensor: Any) -> NDArray[Any]:
    """Give a torch tensor as a NumPy array without a copy, bfloat16 through ml_dtypes.

    Examples
    --------
    >>> import torch
    >>> from benchmarks.inputs import as_numpy
    >>> as_numpy(torch.ones(2, dtype=torch.bfloat16)).dtype
    dtype(bfloat16)
    """
    import torch

    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()  # type: ignore[no-any-return]
    import ml_dtypes

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)  # type: ignore[no-any-return]


def make_inputs(case: Case) -> Inputs:
    """Draw a case's inputs, always the same ones.

    Every query's own key resembles it, as tokens' keys do in a model: whoever is off by one key, or puts the diagonal
    elsewhere, gets another result.

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
    query = torch.randn(case.batch, case.query_heads, case.queries, case.head_dim, generator=generator)
    key, value = (
        torch.randn(case.batch, case.key_heads, case.keys, case.head_dim, generator=generator) for _ in range(2)
    )
    key[:, :, case.keys - case.queries :] += query[:, :: case.query_heads // case.key_heads]
    return Inputs(case, *(in_numpy_memory(array.to(dtype)) for array in (query, key, value)))


def in_numpy_memory(tensor: Any) -> Any:
    """Give a torch tensor in memory that NumPy asked for.

    NumPy asks for huge pages and torch does not; the arrays of the rivals that are not torch come from NumPy, and
    everyone should read pages of the same size.
    """
    import torch

    return torch.from_numpy(tensor.view(torch.uint8).numpy().copy()).view(tensor.dtype)


def definition(inputs: Inputs) -> NDArray[np.float64]:
    """Evaluate the definition for the last rows: [batch, query_heads, at most CHECKED_ROWS, head_dim].

    All rows would take queries x keys float64 numbers; one key head at a time keeps even these few small.
    """
    case = inputs.case
    group = case.query_heads // case.key_heads
    rows = min(case.queries, CHECKED_ROWS)
    outputs = []
    for head in range(case.key_heads):
        heads, own = slice(head * group, (head + 1) * group), slice(head, head + 1)
        problem = make_problem(
            inputs.query[:, heads, -rows:],
            inputs.key[:, own],
            inputs.value[:, own],
            mask=inputs.mask,
            bias=None,
            scale=None,
            softcap=None,
            sinks=None,
        )
        outputs.append(reference.evaluate(problem).output)
    return np.concatenate(outputs, axis=1)
