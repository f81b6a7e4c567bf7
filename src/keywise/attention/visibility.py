"""Which keys a query may see: a `Mask` resolved against the arrays."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.attention.checks import as_integer_array, broadcast
from keywise.attention.mask import Mask
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import MAX_TOKENS


class Visibility(NamedTuple):
    """A `Mask` resolved against the arrays: absolute positions, per batch item."""

    causal: bool
    left: int
    """Keys visible before the query's own position, -1 for all."""
    right: int
    lengths: Array
    starts: Array
    keep_first: int
    documents: Array | None
    """[B, P] int32 over absolute positions."""
    allowed: Array | None
    """[B, Hq, Q, N] bool, broadcast by zero strides."""


def _positions(name: str, value: Any, batch: int) -> Array:
    data = as_integer_array(f"mask.{name}", np.asarray(value) if isinstance(value, (int, list, tuple)) else value)
    if data.shape not in {(batch,), ()}:
        raise ShapeError(f"mask.{name} has shape {list(data.shape)}; it needs one position per batch item: [{batch}]")
    if ((data < 0) | (data > MAX_TOKENS)).any():
        raise OptionError(f"mask.{name} holds {data.min()} to {data.max()}; positions lie between 0 and {MAX_TOKENS}")
    return np.ascontiguousarray(np.broadcast_to(data, (batch,)), np.int64)


def resolve(mask: Any, scores: tuple[int, ...], first_key: int) -> Visibility:
    """Resolve a mask of scores [B, Hq, Q, N] whose first key stands at `first_key`, or refuse."""
    name = "mask.allowed" if isinstance(mask, Mask) else "mask"
    if mask is None:
        mask = _EVERY_KEY
    elif not isinstance(mask, Mask):
        mask = Mask(allowed=mask)
    batch, _, _, keys = scores
    end = first_key + keys
    rule = _rule(mask.causal, mask.window, mask.keep_first, batch, end)
    arrays: dict[str, Any] = {}
    if mask.lengths is not None:
        arrays["lengths"] = _positions("lengths", mask.lengths, batch)
    if mask.starts is not None:
        arrays["starts"] = _positions("starts", mask.starts, batch)
    if mask.documents is not None:
        arrays["documents"] = _documents(mask.documents, batch, end)
    if mask.allowed is not None:
        arrays["allowed"] = _allowed(name, mask.allowed, scores)
    return rule._replace(**arrays) if arrays else rule


_EVERY_KEY = Mask()


@functools.lru_cache(maxsize=8)  # the layers of a model ask for the same few
def _rule(
    causal: bool, window: tuple[int | None, int | None] | None, keep_first: int, batch: int, end: int
) -> Visibility:
    """Resolve a mask without arrays."""
    lengths, starts = np.full(batch, end, np.int64), np.zeros(batch, np.int64)
    for array in (lengths, starts):
        array.flags.writeable = False
    return Visibility(
        **_sides(causal, window, keep_first)._asdict(),
        lengths=lengths,
        starts=starts,
        documents=None,
        allowed=None,
    )


class Sides(NamedTuple):
    """A mask without arrays, in numbers."""

    causal: bool
    left: int
    """Keys visible before the query's own position, -1 for all."""
    right: int
    keep_first: int


def sides_of(mask: Any) -> Sides | None:
    """Give a mask's numbers; None when it has arrays, or is none."""
    if mask is None:
        return _EVERY_SIDE
    if (
        not isinstance(mask, Mask)
        or mask.lengths is not None
        or mask.starts is not None
        or mask.documents is not None
        or mask.allowed is not None
    ):
        return None
    return _sides(mask.causal, mask.window, mask.keep_first)


@functools.lru_cache(maxsize=64)
def _sides(causal: bool, window: tuple[int | None, int | None] | None, keep_first: int) -> Sides:
    left, right = (-1 if side is None else min(side, MAX_TOKENS) for side in window or (None, None))
    return Sides(causal, left, right, min(keep_first, MAX_TOKENS))


_EVERY_SIDE = _sides(_EVERY_KEY.causal, _EVERY_KEY.window, _EVERY_KEY.keep_first)


def _documents(documents: Any, batch: int, end: int) -> Array:
    ids = as_integer_array("mask.documents", documents)
    if ids.ndim != 2 or ids.shape[0] != batch or ids.shape[1] < end:
        raise ShapeError(f"mask.documents has shape {list(ids.shape)}; it needs an id per key: [{batch}, {end}]")
    if ids.size and (ids.min() < -(2**31) or ids.max() >= 2**31):
        raise OptionError("mask.documents holds ids that do not fit 32 bits; number the documents from 0")
    return np.ascontiguousarray(ids, np.int32)


def _allowed(name: str, allowed: Any, scores: tuple[int, ...]) -> Array:
    taken = as_host_array(name, allowed)
    if taken.dtype != "bool":
        raise DtypeError(
            f"{name} has dtype {taken.dtype}; it is boolean, True where a query may attend (added scores go in bias=)"
        )
    return broadcast(name, taken.data, scores)
