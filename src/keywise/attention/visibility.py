"""A `Mask` checked against the sizes of a call."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from keywise.attention.arrays import Array, as_host_array
from keywise.attention.checks import as_integer_array, broadcast
from keywise.attention.mask import Mask
from keywise.attention.native import CheckedMask, Inputs
from keywise.attention.sizes import Sizes
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import MAX_TOKENS


class Visibility(NamedTuple):
    """Which keys the queries of a call see, in absolute positions.

    Attributes
    ----------
    causal
        A query sees no key after its own position.
    left, right
        Keys visible before and after the query's own position, -1 for all.
    lengths, starts
        [B] int64.
    keep_first
        Keys, counted from `starts`, that every query sees.
    documents
        [B, P] int32 over absolute positions.
    allowed
        [B, Hq, Q, N] bool, broadcast by zero strides.
    """

    causal: bool
    left: int
    right: int
    lengths: Array
    starts: Array
    keep_first: int
    documents: Array | None
    allowed: Array | None


class _MaskFields(NamedTuple):
    causal: bool
    left: int
    right: int
    keep_first: int
    lengths: Array | None = None
    starts: Array | None = None
    documents: Array | None = None
    allowed: Array | None = None


class ResolvedMask(_MaskFields):
    """Checked fields of a mask.

    Arrays that the mask does not have are None, so that it fits calls of any size.
    """

    @functools.cached_property
    def native(self) -> CheckedMask:
        """The mask in the form that the kernels read."""
        return CheckedMask(**self._asdict())

    def make_visibility(self, sizes: Sizes, first_key: int) -> Visibility:
        """Return the mask for one call, with default positions filled in.

        Parameters
        ----------
        sizes
            The call's sizes.
        first_key
            Position of its first key.
        """
        lengths, starts = self.lengths, self.starts
        if lengths is None:
            lengths = np.full(sizes.batch, first_key + sizes.keys, np.int64)
        if starts is None:
            starts = np.zeros(sizes.batch, np.int64)
        return Visibility(
            causal=self.causal,
            left=self.left,
            right=self.right,
            lengths=lengths,
            starts=starts,
            keep_first=self.keep_first,
            documents=self.documents,
            allowed=self.allowed,
        )


def resolve_mask(mask: Any, sizes: Sizes | Inputs, first_key: int) -> ResolvedMask:
    """Check a mask against the sizes of a call.

    Parameters
    ----------
    mask
        A `Mask`, a bool array that broadcasts to the scores, or None.
    sizes
        The call's sizes.
    first_key
        Position of its first key.

    Raises
    ------
    DtypeError, ShapeError, OptionError
        `mask` is of another type, or one of its arrays does not fit.

    Examples
    --------
    >>> import keywise as kw
    >>> from keywise.attention.sizes import Sizes
    >>> sizes = Sizes(batch=1, query_heads=2, key_heads=2, queries=3, keys=5, head_dim=8, value_dim=8)
    >>> resolve_mask(kw.Mask(causal=True, lengths=[4]), sizes, 0).lengths.tolist()
    [4]
    """
    if mask is None:
        return ALL_KEYS
    if not isinstance(mask, Mask):
        return _resolve_sides(False, None, 0)._replace(allowed=_check_allowed("mask", mask, sizes))
    fields = _resolve_sides(mask.causal, mask.window, mask.keep_first)
    arrays: dict[str, Any] = {}
    if mask.lengths is not None:
        arrays["lengths"] = _check_positions("mask.lengths", mask.lengths, sizes.batch)
    if mask.starts is not None:
        arrays["starts"] = _check_positions("mask.starts", mask.starts, sizes.batch)
    if mask.documents is not None:
        arrays["documents"] = _check_documents(mask.documents, sizes.batch, first_key + sizes.keys)
    if mask.allowed is not None:
        arrays["allowed"] = _check_allowed("mask.allowed", mask.allowed, sizes)
    return fields._replace(**arrays) if arrays else fields


@functools.lru_cache(maxsize=64)  # the layers of a model share a few
def _resolve_sides(causal: bool, window: tuple[int | None, int | None] | None, keep_first: int) -> ResolvedMask:
    left, right = (-1 if side is None else min(int(side), MAX_TOKENS) for side in window or (None, None))
    return ResolvedMask(causal, left, right, min(int(keep_first), MAX_TOKENS))


ALL_KEYS = _resolve_sides(False, None, 0)


def _check_positions(name: str, value: Any, batch: int) -> Array:
    positions = as_integer_array(name, value)
    if positions.shape not in {(batch,), ()}:
        raise ShapeError(name, f"must have one position per batch item, [{batch}], got shape {list(positions.shape)}")
    if ((positions < 0) | (positions > MAX_TOKENS)).any():
        raise OptionError(name, f"must be from 0 to {MAX_TOKENS}, got {positions.min()} to {positions.max()}")
    return np.ascontiguousarray(np.broadcast_to(positions, (batch,)), np.int64)


def _check_documents(documents: Any, batch: int, end: int) -> Array:
    ids = as_integer_array("mask.documents", documents)
    if ids.ndim != 2 or ids.shape[0] != batch or ids.shape[1] < end:
        raise ShapeError("mask.documents", f"must have an id per key, [{batch}, {end}], got shape {list(ids.shape)}")
    if ids.size and (ids.min() < -(2**31) or ids.max() >= 2**31):
        raise OptionError(
            "mask.documents", f"must fit 32 bits, got {ids.min()} to {ids.max()}", remedy="number documents from 0"
        )
    return np.ascontiguousarray(ids, np.int32)


def _check_allowed(name: str, allowed: Any, sizes: Sizes | Inputs) -> Array:
    array = as_host_array(name, allowed)
    if array.dtype != "bool":
        raise DtypeError(
            name,
            f"must be boolean, True where a query may attend, got dtype {array.dtype}",
            remedy="add scores by bias=",
        )
    return broadcast(name, array.data, sizes.scores)
