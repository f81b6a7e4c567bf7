"""Keys or values of one layer that lie in several pieces of memory, handed to a model as one tensor."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from keywise.attention.arrays import HostArray
from keywise.attention.operation import Chunks


def join(chunks: Sequence[HostArray], dtype: Any) -> Any:
    """Give keys or values [B, H, tokens, D] as one tensor along the tokens, over their own memory.

    A single piece is a plain view. Several, and those in int8, are a tensor of `dtype` (a torch.dtype) that stands for
    them.
    """
    if chunks[0].scale is not None:
        parts: list[Any] = list(chunks)
    elif len(chunks) == 1:
        return _tensor(chunks[0])
    else:
        parts = [_tensor(chunk) for chunk in chunks]
    batch, heads, _, width = chunks[0].data.shape
    return joined_class()(parts, (batch, heads, sum(chunk.data.shape[2] for chunk in chunks), width), dtype)


def _tensor(chunk: HostArray) -> Any:
    import torch

    tensor = torch.from_numpy(chunk.data)
    return tensor.view(torch.bfloat16) if chunk.dtype == "bfloat16" else tensor


def apart(key: Any, value: Any) -> tuple[Any, Any]:
    """Give joined keys and values as the pieces that they lie in, other tensors as they are."""
    joined = joined_class()
    if isinstance(key, joined) and isinstance(value, joined) and len(key.chunks) == len(value.chunks):
        return Chunks(key.chunks), Chunks(value.chunks)
    # A model may have worked on the one and not on the other.
    return tuple(tensor.dense if isinstance(tensor, joined) else tensor for tensor in (key, value))


@functools.cache
def joined_class() -> Any:
    """Give the tensor class whose pieces are copied together only if some operation asks for its elements.

    keywise's attention reads the pieces where they lie; any other attention, and whatever else a model does with its
    keys and values, works on the one tensor that they stand for.
    """
    import torch
    from torch.utils import _pytree

    class Joined(torch.Tensor):  # type: ignore[misc]  # torch has no types here
        """Several arrays [B, H, tokens, D] that follow each other along the tokens, without storage of its own."""

        chunks: tuple[Any, ...]
        """Tensors, or what was taken of keys and values in int8."""

        @staticmethod
        def __new__(cls, chunks: Sequence[Any], shape: tuple[int, ...], dtype: Any) -> Any:
            self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
            self.chunks = tuple(chunks)
            return self

        @functools.cached_property
        def dense(self) -> Any:
            return torch.cat([self._floats(chunk) for chunk in self.chunks], dim=2)

        def _floats(self, chunk: Any) -> Any:
            return torch.from_numpy(chunk.floats(np.float32)).to(self.dtype) if isinstance(chunk, HostArray) else chunk

        def __repr__(self, **_: Any) -> str:
            return f"Joined({list(self.shape)} of {len(self.chunks)} pieces)"

        @classmethod
        def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            def filled(value: Any) -> Any:
                if not isinstance(value, Joined):
                    return value
                # Whoever holds the elements may write to them, so from here on they are the one piece.
                value.chunks = (value.dense,)
                return value.dense

            return function(*_pytree.tree_map(filled, args), **_pytree.tree_map(filled, kwargs or {}))

    return Joined
