"""Keys or values of one layer that lie in several pieces of memory, handed to a model as one tensor."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from keywise.attention.arrays import Taken
from keywise.attention.operation import Pieces


def join(pieces: Sequence[Taken], dtype: Any) -> Any:
    """Give keys or values [B, H, tokens, D] as one tensor along the tokens, over their own memory.

    A single piece is a plain view. Several, and those in int8, are a tensor of `dtype` (a torch.dtype) that stands for
    them.
    """
    if pieces[0].scale is not None:
        parts: list[Any] = list(pieces)
    elif len(pieces) == 1:
        return _tensor(pieces[0])
    else:
        parts = [_tensor(piece) for piece in pieces]
    batch, heads, _, width = pieces[0].data.shape
    return joined_class()(parts, (batch, heads, sum(piece.data.shape[2] for piece in pieces), width), dtype)


def _tensor(piece: Taken) -> Any:
    import torch

    tensor = torch.from_numpy(piece.data)
    return tensor.view(torch.bfloat16) if piece.dtype == "bfloat16" else tensor


def apart(key: Any, value: Any) -> tuple[Any, Any]:
    """Give joined keys and values as the pieces that they lie in, other tensors as they are."""
    joined = joined_class()
    if isinstance(key, joined) and isinstance(value, joined) and len(key.pieces) == len(value.pieces):
        return Pieces(key.pieces), Pieces(value.pieces)
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

        pieces: tuple[Any, ...]
        """Tensors, or what was taken of keys and values in int8."""

        @staticmethod
        def __new__(cls, pieces: Sequence[Any], shape: tuple[int, ...], dtype: Any) -> Any:
            self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype)
            self.pieces = tuple(pieces)
            return self

        @functools.cached_property
        def dense(self) -> Any:
            return torch.cat([self._floats(piece) for piece in self.pieces], dim=2)

        def _floats(self, piece: Any) -> Any:
            return torch.from_numpy(piece.floats(np.float32)).to(self.dtype) if isinstance(piece, Taken) else piece

        def __repr__(self, **_: Any) -> str:
            return f"Joined({list(self.shape)} of {len(self.pieces)} pieces)"

        @classmethod
        def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            def filled(value: Any) -> Any:
                if not isinstance(value, Joined):
                    return value
                # Whoever holds the elements may write to them, so from here on they are the one piece.
                value.pieces = (value.dense,)
                return value.dense

            return function(*_pytree.tree_map(filled, args), **_pytree.tree_map(filled, kwargs or {}))

    return Joined
