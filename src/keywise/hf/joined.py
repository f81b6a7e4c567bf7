"""Keys or values in several chunks of memory, as one tensor for a model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from keywise.attention.arrays import HostArray
from keywise.attention.operation import Chunks


class JoinedTensor(torch.Tensor):  # type: ignore[misc]  # torch has no types here
    """Several arrays joined along the tokens, without storage of its own.

    keywise's attention uses the chunks in place. Any other operation works on the dense tensor, which the
    first such operation makes.

    Parameters
    ----------
    chunks : sequence of tensor or HostArray
        Tensors, or quantised keys or values.
    shape : tuple of int
        The shape of the whole tensor.
    dtype : torch.dtype
        The dtype of the whole tensor.
    """

    chunks: tuple[Any, ...]

    @staticmethod
    def __new__(cls, chunks: Sequence[Any], shape: tuple[int, ...], dtype: Any) -> Any:
        """Create a tensor without storage."""
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
        self.chunks = tuple(chunks)
        return self

    @functools.cached_property
    def dense(self) -> Any:
        """The chunks as one tensor with storage."""
        return torch.cat([self._to_tensor(chunk) for chunk in self.chunks], dim=2)

    def _to_tensor(self, chunk: Any) -> Any:
        if isinstance(chunk, HostArray):
            return torch.from_numpy(chunk.floats(np.float32)).to(self.dtype)
        return chunk

    def __repr__(self, **_: Any) -> str:
        return f"JoinedTensor({list(self.shape)} of {len(self.chunks)} chunks)"

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def materialise(value: Any) -> Any:
            if not isinstance(value, JoinedTensor):
                return value
            # The operation may write to the dense tensor or keep it, so it is the only chunk from now on.
            value.chunks = (value.dense,)
            return value.dense

        return function(*_pytree.tree_map(materialise, args), **_pytree.tree_map(materialise, kwargs or {}))


def join_chunks(chunks: Sequence[HostArray], dtype: Any) -> Any:
    """Return keys or values as one tensor over their own memory.

    Parameters
    ----------
    chunks : sequence of HostArray [B, H, tokens, D]
        At least one.
    dtype : torch.dtype
        Dtype of the result for quantised chunks; others have this dtype already.

    Returns
    -------
    tensor [B, H, tokens, D]
        A view of a single chunk in floating point; otherwise a `JoinedTensor`.
    """
    is_quantised = chunks[0].scale is not None
    if len(chunks) == 1 and not is_quantised:
        return _view_as_tensor(chunks[0])
    parts = list(chunks) if is_quantised else [_view_as_tensor(chunk) for chunk in chunks]
    batch, heads, _, width = chunks[0].data.shape
    tokens = sum(chunk.data.shape[2] for chunk in chunks)
    return JoinedTensor(parts, (batch, heads, tokens, width), dtype)


def _view_as_tensor(chunk: HostArray) -> Any:
    tensor = torch.from_numpy(chunk.data)
    # NumPy has no bfloat16: its bits are stored as 16-bit integers.
    return tensor.view(torch.bfloat16) if chunk.dtype == "bfloat16" else tensor


def split_chunks(key: Any, value: Any) -> tuple[Any, Any]:
    """Return joined keys and values as their chunks, other tensors unchanged.

    Parameters
    ----------
    key, value : tensor [B, H, tokens, D]
        A model may have replaced one of the two by a tensor of its own: both are ordinary tensors in the result then.

    Returns
    -------
    tensor or Chunks, tensor or Chunks
    """
    if isinstance(key, JoinedTensor) and isinstance(value, JoinedTensor) and len(key.chunks) == len(value.chunks):
        return Chunks(key.chunks), Chunks(value.chunks)
    return get_dense(key), get_dense(value)


def get_dense(tensor: Any) -> Any:
    """Return keys or values as one ordinary tensor.

    Parameters
    ----------
    tensor : tensor or JoinedTensor
        Keys or values.
    """
    return tensor.dense if isinstance(tensor, JoinedTensor) else tensor
