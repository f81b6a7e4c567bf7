"""User arrays become one frozen, validated `Problem`; after it nothing checks again.

The records are named tuples: frozen dataclasses take longer to make, which a small call would notice.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keywise.attention.arrays import FLOATS, Array, Taken, countable, rows_in_place, take
from keywise.attention.checks import LARGEST_NUMBER, MAXIMUM_TOKENS, broadcast, real, whole
from keywise.attention.plan import ReadingPlan, Want, plan_of
from keywise.attention.visibility import Visibility, resolve
from keywise.errors import DtypeError, OptionError, ShapeError

SCALED = "int8 with scales"


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
        visibility=resolve(mask, scores, first_key),
        first_key=first_key,
        reading=None if reading is None else plan_of(reading, scores),
    )


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


def _bias(bias: Any, scores: tuple[int, ...], dtype: str) -> Taken:
    taken = take("bias", bias)
    if taken.dtype not in {"float32", dtype}:
        raise DtypeError(
            f"bias has dtype {taken.dtype}; it is float32 or the query's {dtype} (a mask is boolean: use mask=)"
        )
    return Taken(broadcast("bias", countable(taken.data), scores), taken.dtype, taken.like)


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
