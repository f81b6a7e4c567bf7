"""User arrays become one frozen, validated `Problem`; after it nothing checks again.

The records are named tuples: frozen dataclasses take longer to make, which a small call would notice.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keywise.attention.arrays import FLOATS, Array, Taken, countable, rows_in_place, take
from keywise.attention.mask import Mask
from keywise.errors import DtypeError, OptionError, ShapeError

MAXIMUM_TOKENS = 2**31 - 1
SCALED = "int8 with scales"
LARGEST_NUMBER = 1e30
"""Kernels hold options in float32."""


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


class Want(NamedTuple):
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


class ReadingPlan(NamedTuple):
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
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    """Name, shape and dtype of every reading."""


class Sizes(NamedTuple):
    """(B, Hq, Hkv, Q, N, D, Dv)."""

    batch: int
    query_heads: int
    key_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int


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


class Problem(NamedTuple):
    """One call of attention, validated: shapes fit, dtypes agree, every option is usable."""

    query: Taken
    pieces: tuple[Piece, ...]
    """One or more, in key order."""
    shape: Sizes
    bias: Taken | None
    sinks: Array | None
    scale: float
    softcap: float | None
    visibility: Visibility
    first_key: int
    reading: ReadingPlan | None

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
    reading: Want | None = None,
) -> Problem:
    """Validate the arguments of attention and freeze them; key and value may come in `Pieces`."""
    taken = take("query", query)
    pieces, sizes = _pieces(taken, key, value)
    batch, query_heads, _, queries, keys, head_dim, _ = sizes
    scores = batch, query_heads, queries, keys
    first_key = whole("first_key", first_key, minimum=0)
    scale = head_dim**-0.5 if scale is None else real("scale", scale)
    return Problem(
        _in_place(taken),
        pieces,
        sizes,
        bias=None if bias is None else _bias(bias, scores, taken.dtype),
        sinks=None if sinks is None else _sinks(sinks, query_heads),
        scale=scale,
        softcap=None if softcap is None else _softcap(softcap, scale),
        visibility=_resolve(mask, scores, first_key),
        first_key=first_key,
        reading=None if reading is None else plan_of(reading, scores),
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


def _pieces(query: Taken, key: Any, value: Any) -> tuple[tuple[Piece, ...], Sizes]:
    """Give the pieces, and the sizes of the problem that they make together."""
    if not isinstance(key, Pieces) and not isinstance(value, Pieces):
        piece, sizes = _piece(query, key, value)
        return (piece,), sizes
    if not isinstance(key, Pieces) or not isinstance(value, Pieces) or len(key) != len(value) or not key:
        raise ShapeError("key and value come in one array each, or in the same number of pieces, one or more")
    found = [_piece(query, *both, f" piece {number}") for number, both in enumerate(zip(key, value, strict=True))]
    pieces = tuple(piece for piece, _ in found)
    for number, piece in enumerate(pieces):
        for name, array, first in zip(Piece._fields, piece, pieces[0], strict=True):
            if array.dtype != first.dtype:
                raise DtypeError(f"{name} piece {number} has dtype {array.dtype} and the first {first.dtype}")
            if (array.data.shape[1], array.data.shape[3]) != (first.data.shape[1], first.data.shape[3]):
                raise ShapeError(
                    f"{name} piece {number} has shape {list(array.data.shape)} and the first piece "
                    f"{list(first.data.shape)}; heads and head_dim must agree"
                )
    sizes = found[0][1]._replace(keys=sum(sizes.keys for _, sizes in found))
    if sizes.keys > MAXIMUM_TOKENS:
        raise ShapeError(f"key has {sizes.keys} tokens in all; at most {MAXIMUM_TOKENS} fit one call")
    # Pieces without tokens would only be asked in vain; one is kept where there is no other.
    return tuple(piece for piece, sizes in found if sizes.keys) or pieces[:1], sizes


def _piece(query: Taken, key: Any, value: Any, which: str = "") -> tuple[Piece, Sizes]:
    keys, values = take(f"key{which}", key), take(f"value{which}", value)
    dtypes = query.dtype, _dtype_of(keys), _dtype_of(values)
    sizes = _sizes(dtypes, (query.data.shape, keys.data.shape, values.data.shape), which)
    return Piece(_in_place(keys), _in_place(values)), sizes


def _dtype_of(taken: Taken) -> str:
    return taken.dtype if taken.scale is None else SCALED


def _in_place(taken: Taken) -> Taken:
    data = rows_in_place(taken.data)
    scale = None if taken.scale is None else rows_in_place(taken.scale)
    return taken if data is taken.data and scale is taken.scale else taken._replace(data=data, scale=scale)


@functools.lru_cache(maxsize=64)  # the layers of a model are all of the same few
def _sizes(dtypes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...], which: str) -> Sizes:
    """Check the dtypes and shapes of query, key and value, and these against each other."""
    names = "query", f"key{which}", f"value{which}"
    for name, dtype, shape in zip(names, dtypes, shapes, strict=True):
        if dtype not in FLOATS and (dtype != SCALED or name == "query"):
            raise DtypeError(f"{name} has dtype {dtype}; keywise takes {', '.join(FLOATS)}")
        if len(shape) != 4:
            raise ShapeError(f"{name} has shape {list(shape)}; it needs 4 axes [batch, heads, tokens, head_dim]")
        if shape[3] == 0:
            raise ShapeError(f"{name} has shape {list(shape)}; head_dim is 1 or more")
        if shape[2] > MAXIMUM_TOKENS:
            raise ShapeError(f"{name} has {shape[2]} tokens; at most {MAXIMUM_TOKENS} fit one call")
        if dtype not in {dtypes[0], SCALED}:
            raise DtypeError(f"{name} has dtype {dtype} and query has {dtypes[0]}; the three share one")
        if shape[0] != shapes[0][0]:
            raise ShapeError(f"{name} has {shape[0]} batch items, query has {shapes[0][0]}; they must agree")
    if dtypes[1] != dtypes[2]:
        raise DtypeError(f"key{which} has dtype {dtypes[1]} and value{which} has {dtypes[2]}; they must agree")
    query, key, value = shapes
    if key[3] != query[3]:
        raise ShapeError(f"key has head_dim {key[3]} and query has {query[3]}; they must agree")
    if key[1:3] != value[1:3]:
        raise ShapeError(f"key has shape {list(key)} and value has {list(value)}; heads and tokens must agree")
    if key[1] == 0 or query[1] % key[1]:
        raise ShapeError(f"query has {query[1]} heads and key has {key[1]}; query heads are a multiple of key heads")
    return Sizes(query[0], query[1], key[1], query[2], key[2], query[3], value[3])


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
    left, right = (-1 if side is None else min(side, MAXIMUM_TOKENS) for side in window or (None, None))
    return Sides(causal, left, right, min(keep_first, MAXIMUM_TOKENS))


_EVERY_SIDE = _sides(_EVERY_KEY.causal, _EVERY_KEY.window, _EVERY_KEY.keep_first)


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


_NO_RUNS = np.empty((0, 3), np.int64)


def plan_of(want: Want, scores: tuple[int, ...]) -> ReadingPlan:
    """Resolve what is wanted of scores [B, Hq, Q, N], or refuse."""
    batch, query_heads, queries, keys = scores
    first_row, last_row = (0, queries) if want.rows is None else want.rows
    if not 0 <= first_row <= last_row <= queries:
        raise OptionError(f"rows={want.rows}: they lie between 0 and the {queries} query rows, in order")
    runs, segment_count = _NO_RUNS, None
    if want.segments is not None:
        runs, segment_count = _runs(want.segments, keys)
    top = whole("top", want.top, minimum=0)
    return ReadingPlan(
        top=top,
        key_mass=want.key_mass,
        first_row=first_row,
        last_row=last_row,
        runs=runs,
        segment_count=segment_count,
        row_weights=None if want.row_weights is None else _row_weights(want.row_weights, (batch, query_heads, queries)),
        arrays=_arrays((batch, query_heads, last_row - first_row), top, keys if want.key_mass else None, segment_count),
    )


@functools.lru_cache(maxsize=8)
def _arrays(
    rows: tuple[int, int, int], top: int, keys: int | None, segment_count: int | None
) -> tuple[tuple[str, tuple[int, ...], str], ...]:
    arrays: list[tuple[str, tuple[int, ...], str]] = [
        ("lse", rows, "float32"),
        ("entropy", rows, "float32"),
        ("top_keys", (*rows, top), "int32"),
        ("top_weights", (*rows, top), "float32"),
        ("covered", rows, "float32"),
    ]
    if keys is not None:
        arrays.append(("key_mass", (*rows[:2], keys), "float32"))
    if segment_count is not None:
        arrays.append(("segment_mass", (*rows, segment_count), "float32"))
    return tuple(arrays)


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
    # A few bounds are met again by every layer and every token.
    return _runs_met(data.tobytes(), keys) if data.size <= 1024 else _runs_of(data, keys)


@functools.lru_cache(maxsize=8)
def _runs_met(data: bytes, keys: int) -> tuple[Array, int]:
    runs, segments = _runs_of(np.frombuffer(data, np.int64), keys)
    runs.flags.writeable = False  # it is handed out again
    return runs, segments


def _runs_of(data: Array, keys: int) -> tuple[Array, int]:
    increasing = data.size >= 2 and bool((np.diff(data) > 0).all())
    # Increasing numbers that start at 0 and end at the number of keys are bounds even when there are N of them.
    bounds = increasing and data[0] >= 0 and data[-1] <= keys
    if bounds and (data.size != keys or data[-1] == keys):
        runs = np.empty((data.size - 1, 3), np.int64)
        runs[:, 0], runs[:, 1], runs[:, 2] = data[:-1], data[1:], np.arange(data.size - 1)
        return runs, data.size - 1
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
