"""User arrays become one frozen, validated `Problem`; after it nothing checks again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keywise.attention.arrays import FLOATS, Array, Taken, countable, rows_in_place, take
from keywise.attention.mask import Mask
from keywise.errors import DtypeError, OptionError, ShapeError

MAXIMUM_TOKENS = 2**31 - 1
LARGEST_NUMBER = 1e30
"""Kernels hold options in float32."""


@dataclass(frozen=True, eq=False)
class Visibility:
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


@dataclass(frozen=True, eq=False)
class Want:
    """What a reading should find out, and for which query rows.

    Parameters
    ----------
    top : int
        Number of heaviest keys per query row; 0 for none.
    segments : array, optional
        S+1 increasing key positions, or one segment id per key (-1: none).
    row_weights : array, optional
        Broadcasts to [B, Hq, Q]; weight of each query row in `key_mass`.
    key_mass : bool
        Whether to sum the weights per key.
    rows : (int, int), optional
        First query row to read and the row after the last; default all.
    """

    top: int = 8
    segments: Any = None
    row_weights: Any = None
    key_mass: bool = True
    rows: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class ReadingPlan:
    """A `Want` resolved against the arrays."""

    top: int
    key_mass: bool
    first_row: int
    last_row: int
    """One past the last row read."""
    runs: Array
    """[R, 3] int64 (first key, key after the last, segment): maximal runs of one segment, in key order."""
    segment_count: int | None
    row_weights: Array | None
    """[B, Hq, Q] float32, broadcast by zero strides; None for 1 everywhere."""


class Pieces(tuple[Any, ...]):
    """A key or value argument in several arrays, one after the other along the tokens; none is copied together."""


class Piece(NamedTuple):
    """Keys and values of a run of tokens, in memory of their own."""

    key: Taken
    value: Taken

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.key.data.shape[2])


@dataclass(frozen=True, eq=False)
class Problem:
    """One call of attention, validated: shapes fit, dtypes agree, every option is usable."""

    query: Taken
    pieces: tuple[Piece, ...]
    """One or more, in key order."""
    shape: tuple[int, int, int, int, int, int, int]
    """(B, Hq, Hkv, Q, N, D, Dv)."""
    bias: Taken | None
    sinks: Array | None
    scale: float
    softcap: float | None
    visibility: Visibility
    first_key: int
    reading: ReadingPlan | None = None

    @property
    def dtype(self) -> str:
        """Element type of query and output, and of key and value where these are not int8."""
        return self.query.dtype

    def key_floats(self, dtype: npt.DTypeLike) -> Array:
        """Give the keys of all pieces as one array of NumPy floats [B, Hkv, N, D]."""
        return np.concatenate([piece.key.floats(dtype) for piece in self.pieces], axis=2)

    def value_floats(self, dtype: npt.DTypeLike) -> Array:
        """Give the values of all pieces as one array of NumPy floats [B, Hkv, N, Dv]."""
        return np.concatenate([piece.value.floats(dtype) for piece in self.pieces], axis=2)

    def with_reading(self, want: Want) -> Problem:
        """Add what a reading wants, validated."""
        return replace(self, reading=_plan(want, self.shape))


def make_problem(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any,
    bias: Any,
    scale: float | None,
    softcap: float | None,
    sinks: Any,
    first_key: int = 0,
) -> Problem:
    """Validate the arguments of attention and freeze them; key and value may come in `Pieces`."""
    taken_query = _tokens("query", query)
    pieces = _pieces(taken_query, key, value)
    batch, query_heads, queries, head_dim = taken_query.data.shape
    _, key_heads, _, value_dim = pieces[0].value.data.shape
    keys = sum([piece.tokens for piece in pieces])
    scores = (batch, query_heads, queries, keys)
    first_key = whole("first_key", first_key, minimum=0)
    scale = head_dim**-0.5 if scale is None else real("scale", scale)
    return Problem(
        query=taken_query,
        pieces=pieces,
        shape=(batch, query_heads, key_heads, queries, keys, head_dim, value_dim),
        bias=None if bias is None else _bias(bias, scores, taken_query.dtype),
        sinks=None if sinks is None else _sinks(sinks, query_heads),
        scale=scale,
        softcap=None if softcap is None else _softcap(softcap, scale),
        visibility=_resolve(mask, scores, first_key),
        first_key=first_key,
    )


def whole(name: str, value: Any, *, minimum: int, maximum: int = MAXIMUM_TOKENS) -> int:
    """Check a whole number."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise DtypeError(f"{name}={value!r}: {name} is a whole number")
    if not minimum <= value <= maximum:
        raise OptionError(f"{name}={value}: {name} lies between {minimum} and {maximum}")
    return int(value)


def real(name: str, value: Any) -> float:
    """Check a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise DtypeError(f"{name}={value!r}: {name} is a number")
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise OptionError(f"{name}={value}: {name} is finite, at most {LARGEST_NUMBER:g} in size")
    return float(value)


def _softcap(value: Any, scale: float) -> float:
    softcap = real("softcap", value)
    if softcap < 1 / LARGEST_NUMBER:
        raise OptionError(f"softcap={softcap}: softcap is {1 / LARGEST_NUMBER:g} or more; None for no cap")
    if abs(scale) / softcap > LARGEST_NUMBER:
        raise OptionError(f"softcap={softcap} is too small for scale={scale}; None for no cap")
    return softcap


def _tokens(name: str, array: Any) -> Taken:
    taken = take(name, array)
    if taken.dtype not in FLOATS and (taken.scale is None or name == "query"):
        raise DtypeError(f"{name} has dtype {taken.dtype}; keywise takes {', '.join(FLOATS)}")
    if taken.data.ndim != 4:
        raise ShapeError(f"{name} has shape {list(taken.data.shape)}; it needs 4 axes [batch, heads, tokens, head_dim]")
    if taken.data.shape[3] == 0:
        raise ShapeError(f"{name} has shape {list(taken.data.shape)}; head_dim is 1 or more")
    if taken.data.shape[2] > MAXIMUM_TOKENS:
        raise ShapeError(f"{name} has {taken.data.shape[2]} tokens; at most {MAXIMUM_TOKENS} fit one call")
    scale = None if taken.scale is None else rows_in_place(taken.scale)
    return Taken(rows_in_place(taken.data), taken.dtype, taken.like, scale)


def _pieces(query: Taken, key: Any, value: Any) -> tuple[Piece, ...]:
    if not isinstance(key, Pieces) and not isinstance(value, Pieces):
        piece = Piece(_tokens("key", key), _tokens("value", value))
        _fit(query, piece)
        return (piece,)
    if not isinstance(key, Pieces) or not isinstance(value, Pieces) or len(key) != len(value) or not key:
        raise ShapeError("key and value come in one array each, or in the same number of pieces, one or more")
    pieces = tuple(
        Piece(_tokens(f"key piece {number}", keys), _tokens(f"value piece {number}", values))
        for number, (keys, values) in enumerate(zip(key, value, strict=True))
    )
    for number, piece in enumerate(pieces):
        _fit(query, piece)
        for name, found, wanted in zip(("key", "value"), piece, pieces[0], strict=True):
            if found.dtype != wanted.dtype:
                raise DtypeError(f"{name} piece {number} has dtype {found.dtype} and the first {wanted.dtype}")
            if (found.data.shape[1], found.data.shape[3]) != (wanted.data.shape[1], wanted.data.shape[3]):
                raise ShapeError(
                    f"{name} piece {number} has shape {list(found.data.shape)} and the first piece "
                    f"{list(wanted.data.shape)}; heads and head_dim must agree"
                )
    tokens = sum(piece.tokens for piece in pieces)
    if tokens > MAXIMUM_TOKENS:
        raise ShapeError(f"key has {tokens} tokens in all; at most {MAXIMUM_TOKENS} fit one call")
    # Pieces without tokens would only be asked in vain; one is kept where there is no other.
    return tuple(piece for piece in pieces if piece.tokens) or pieces[:1]


def _fit(query: Taken, piece: Piece) -> None:
    key, value = piece
    for name, array in (("key", key), ("value", value)):
        if array.dtype != query.dtype and array.scale is None:
            raise DtypeError(f"{name} has dtype {array.dtype} and query has {query.dtype}; the three share one")
        if array.data.shape[0] != query.data.shape[0]:
            raise ShapeError(
                f"{name} has {array.data.shape[0]} batch items, query has {query.data.shape[0]}; they must agree"
            )
    if key.dtype != value.dtype:
        raise DtypeError(f"key has dtype {key.dtype} and value has {value.dtype}; they must agree")
    if key.data.shape[3] != query.data.shape[3]:
        raise ShapeError(f"key has head_dim {key.data.shape[3]} and query has {query.data.shape[3]}; they must agree")
    if key.data.shape[1:3] != value.data.shape[1:3]:
        raise ShapeError(
            f"key has shape {list(key.data.shape)} and value has {list(value.data.shape)}; heads and tokens must agree"
        )
    query_heads, key_heads = query.data.shape[1], key.data.shape[1]
    if key_heads == 0 or query_heads % key_heads:
        raise ShapeError(
            f"query has {query_heads} heads and key has {key_heads}; query heads are a multiple of key heads"
        )


def _broadcast(name: str, data: Array, shape: tuple[int, ...]) -> Array:
    try:
        return np.broadcast_to(data, shape)
    except ValueError as error:
        raise ShapeError(f"{name} has shape {list(data.shape)}, which does not broadcast to {list(shape)}") from error


def _bias(bias: Any, scores: tuple[int, ...], dtype: str) -> Taken:
    taken = take("bias", bias)
    if taken.dtype not in {"float32", dtype}:
        raise DtypeError(
            f"bias has dtype {taken.dtype}; it is float32 or the query's {dtype} (a mask is boolean: use mask=)"
        )
    return Taken(_broadcast("bias", countable(taken.data), scores), taken.dtype, taken.like)


def _sinks(sinks: Any, query_heads: int) -> Array:
    taken = take("sinks", sinks)
    if taken.dtype not in FLOATS:
        raise DtypeError(f"sinks has dtype {taken.dtype}; keywise takes {', '.join(FLOATS)}")
    if taken.data.shape != (query_heads,):
        raise ShapeError(
            f"sinks has shape {list(taken.data.shape)}; it needs one score per query head: [{query_heads}]"
        )
    data = taken.floats(np.float64)
    if not (data <= LARGEST_NUMBER).all():
        raise OptionError(f"sinks holds NaN or more than {LARGEST_NUMBER:g}; every sink is a score (-inf for none)")
    return data


def _whole_numbers(name: str, value: Any) -> Array:
    taken = take(name, value)
    # Judged by the name: bfloat16 travels as uint16.
    if not taken.dtype.startswith(("int", "uint")):
        raise DtypeError(f"{name} has dtype {taken.dtype}; it holds whole numbers")
    return taken.data


def _positions(name: str, value: Any, batch: int) -> Array:
    data = _whole_numbers(f"mask.{name}", np.asarray(value) if isinstance(value, (int, list, tuple)) else value)
    if data.shape not in {(batch,), ()}:
        raise ShapeError(f"mask.{name} has shape {list(data.shape)}; it needs one position per batch item: [{batch}]")
    if ((data < 0) | (data > MAXIMUM_TOKENS)).any():
        raise OptionError(
            f"mask.{name} holds {data.min()} to {data.max()}; positions lie between 0 and {MAXIMUM_TOKENS}"
        )
    return np.ascontiguousarray(np.broadcast_to(data, (batch,)), np.int64)


def _resolve(mask: Any, scores: tuple[int, ...], first_key: int) -> Visibility:
    name = "mask.allowed" if isinstance(mask, Mask) else "mask"
    if mask is None:
        mask = Mask()
    elif not isinstance(mask, Mask):
        mask = Mask(allowed=mask)
    batch, _, _, keys = scores
    end = first_key + keys
    left, right = mask.window if mask.window is not None else (None, None)
    return Visibility(
        causal=mask.causal,
        left=-1 if left is None else min(left, MAXIMUM_TOKENS),
        right=-1 if right is None else min(right, MAXIMUM_TOKENS),
        lengths=np.full(batch, end, np.int64) if mask.lengths is None else _positions("lengths", mask.lengths, batch),
        starts=np.zeros(batch, np.int64) if mask.starts is None else _positions("starts", mask.starts, batch),
        keep_first=min(mask.keep_first, MAXIMUM_TOKENS),
        documents=None if mask.documents is None else _documents(mask.documents, batch, end),
        allowed=None if mask.allowed is None else _allowed(name, mask.allowed, scores),
    )


def _documents(documents: Any, batch: int, end: int) -> Array:
    ids = _whole_numbers("mask.documents", documents)
    if ids.ndim != 2 or ids.shape[0] != batch or ids.shape[1] < end:
        raise ShapeError(f"mask.documents has shape {list(ids.shape)}; it needs an id per key: [{batch}, {end}]")
    if ids.size and (ids.min() < -(2**31) or ids.max() >= 2**31):
        raise OptionError("mask.documents holds ids that do not fit 32 bits; number the documents from 0")
    return np.ascontiguousarray(ids, np.int32)


def _allowed(name: str, allowed: Any, scores: tuple[int, ...]) -> Array:
    taken = take(name, allowed)
    if taken.dtype != "bool":
        raise DtypeError(
            f"{name} has dtype {taken.dtype}; it is boolean, True where a query may attend (added scores go in bias=)"
        )
    return _broadcast(name, taken.data, scores)


def _plan(want: Want, shape: tuple[int, ...]) -> ReadingPlan:
    batch, query_heads, _, queries, keys, _, _ = shape
    first_row, last_row = (0, queries) if want.rows is None else want.rows
    if not 0 <= first_row <= last_row <= queries:
        raise OptionError(f"rows={want.rows}: they lie between 0 and the {queries} query rows, in order")
    runs, segment_count = np.empty((0, 3), np.int64), None
    if want.segments is not None:
        runs, segment_count = _runs(want.segments, keys)
    return ReadingPlan(
        top=whole("top", want.top, minimum=0),
        key_mass=want.key_mass,
        first_row=first_row,
        last_row=last_row,
        runs=runs,
        segment_count=segment_count,
        row_weights=None if want.row_weights is None else _row_weights(want.row_weights, (batch, query_heads, queries)),
    )


def _row_weights(row_weights: Any, shape: tuple[int, ...]) -> Array:
    taken = take("row_weights", row_weights)
    if taken.dtype not in FLOATS:
        raise DtypeError(f"row_weights has dtype {taken.dtype}; keywise takes {', '.join(FLOATS)}")
    data = _broadcast("row_weights", countable(taken.floats(np.float32)), shape)
    if not np.isfinite(data).all():
        raise OptionError("row_weights holds NaN or infinity; every weight is finite")
    return data


def _runs(segments: Any, keys: int) -> tuple[Array, int]:
    """Turn bounds or ids into runs; an array as long as the keys holds ids, anything else holds bounds."""
    if isinstance(segments, (list, tuple)):
        segments = np.asarray(segments) if segments else np.empty(0, np.int64)
    data = _whole_numbers("segments", segments)
    if data.ndim != 1:
        raise ShapeError(f"segments has shape {list(data.shape)}; it is one row of bounds [S+1] or of ids [{keys}]")
    data = data.astype(np.int64)
    increasing = data.size >= 2 and bool((np.diff(data) > 0).all())
    # Increasing numbers that start at 0 and end at the number of keys are bounds even when there are N of them.
    bounds = increasing and data[0] >= 0 and data[-1] <= keys
    if bounds and (data.size != keys or data[-1] == keys):
        return np.stack([data[:-1], data[1:], np.arange(data.size - 1)], axis=1), data.size - 1
    if data.size != keys:
        raise OptionError(
            f"segments={_short(data)}: give S+1 increasing key positions from 0 to at most {keys}, "
            f"or {keys} segment ids (-1 for none)"
        )
    if data.size and (data.min() < -1 or data.max() >= keys):
        raise OptionError(f"segments holds ids {data.min()} to {data.max()}; ids lie below {keys}, -1 for none")
    edges = np.flatnonzero(np.diff(data)) + 1
    begins = np.concatenate([[0], edges]) if data.size else np.empty(0, np.int64)
    ends = np.concatenate([edges, [data.size]]) if data.size else np.empty(0, np.int64)
    runs = np.stack([begins, ends, data[begins.astype(np.int64)]], axis=1).astype(np.int64)
    return runs[runs[:, 2] >= 0], int(data.max(initial=-1)) + 1


def _short(data: Array) -> str:
    return str(data.tolist()) if data.size <= 8 else f"[{data[0]}, {data[1]}, ..., {data[-1]}] ({data.size} numbers)"
