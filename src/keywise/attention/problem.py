"""User arrays become one frozen, validated `Problem`; after it nothing checks again.

The records are named tuples: frozen dataclasses take longer to make, which a small call would notice.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keywise.attention.arrays import FLOATS, Array, HostArray, as_host_array, countable, rows_in_place
from keywise.attention.checks import broadcast
from keywise.attention.stats_request import ResolvedStats, StatsRequest, resolve_stats
from keywise.attention.visibility import Visibility, resolve
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import MAX_FLOAT, MAX_TOKENS, check_float, check_int

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


class Chunks(tuple[Any, ...]):
    """A key or value argument in several arrays, one after the other along the tokens; none is copied together."""


class Chunk(NamedTuple):
    """Keys and values of a run of tokens, in memory of their own."""

    key: HostArray
    value: HostArray

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.key.data.shape[2])


class Problem(NamedTuple):
    """One call of attention, validated: shapes fit, dtypes agree, every option is usable."""

    query: HostArray
    chunks: tuple[Chunk, ...]
    """One or more, in key order."""
    shape: Sizes
    bias: HostArray | None
    sinks: Array | None
    scale: float
    softcap: float | None
    visibility: Visibility
    first_key: int
    stats: ResolvedStats | None

    @property
    def dtype(self) -> str:
        """Element type of query and output, and of key and value where these are not int8."""
        return self.query.dtype

    def key_floats(self, dtype: npt.DTypeLike) -> Array:
        """Give the keys of all pieces as one array of NumPy floats [B, Hkv, N, D]."""
        return np.concatenate([chunk.key.floats(dtype) for chunk in self.chunks], axis=2)

    def value_floats(self, dtype: npt.DTypeLike) -> Array:
        """Give the values of all pieces as one array of NumPy floats [B, Hkv, N, Dv]."""
        return np.concatenate([chunk.value.floats(dtype) for chunk in self.chunks], axis=2)


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
    stats: StatsRequest | None = None,
) -> Problem:
    """Validate the arguments of attention and freeze them; key and value may come in `Pieces`."""
    taken = as_host_array("query", query)
    chunks, sizes = _pieces(taken, key, value)
    batch, query_heads, _, queries, keys, head_dim, _ = sizes
    scores = batch, query_heads, queries, keys
    first_key = check_int("first_key", first_key, minimum=0)
    scale = head_dim**-0.5 if scale is None else check_float("scale", scale)
    return Problem(
        _in_place(taken),
        chunks,
        sizes,
        bias=None if bias is None else _bias(bias, scores, taken.dtype),
        sinks=None if sinks is None else _sinks(sinks, query_heads),
        scale=scale,
        softcap=None if softcap is None else _softcap(softcap, scale),
        visibility=resolve(mask, scores, first_key),
        first_key=first_key,
        stats=None if stats is None else resolve_stats(stats, scores),
    )


def _softcap(value: Any, scale: float) -> float:
    softcap = check_float("softcap", value)
    if softcap < 1 / MAX_FLOAT:
        raise OptionError(f"softcap={softcap}: softcap is {1 / MAX_FLOAT:g} or more; None for no cap")
    if abs(scale) / softcap > MAX_FLOAT:
        raise OptionError(f"softcap={softcap} is too small for scale={scale}; None for no cap")
    return softcap


def _pieces(query: HostArray, key: Any, value: Any) -> tuple[tuple[Chunk, ...], Sizes]:
    """Give the pieces, and the sizes of the problem that they make together."""
    if not isinstance(key, Chunks) and not isinstance(value, Chunks):
        chunk, sizes = _piece(query, key, value)
        return (chunk,), sizes
    if not isinstance(key, Chunks) or not isinstance(value, Chunks) or len(key) != len(value) or not key:
        raise ShapeError("key and value come in one array each, or in the same number of pieces, one or more")
    found = [_piece(query, *both, f" piece {number}") for number, both in enumerate(zip(key, value, strict=True))]
    chunks = tuple(chunk for chunk, _ in found)
    for number, chunk in enumerate(chunks):
        for name, array, first in zip(Chunk._fields, chunk, chunks[0], strict=True):
            if array.dtype != first.dtype:
                raise DtypeError(f"{name} piece {number} has dtype {array.dtype} and the first {first.dtype}")
            if (array.data.shape[1], array.data.shape[3]) != (first.data.shape[1], first.data.shape[3]):
                raise ShapeError(
                    f"{name} piece {number} has shape {list(array.data.shape)} and the first piece "
                    f"{list(first.data.shape)}; heads and head_dim must agree"
                )
    sizes = found[0][1]._replace(keys=sum(sizes.keys for _, sizes in found))
    if sizes.keys > MAX_TOKENS:
        raise ShapeError(f"key has {sizes.keys} tokens in all; at most {MAX_TOKENS} fit one call")
    # Pieces without tokens would only be asked in vain; one is kept where there is no other.
    return tuple(chunk for chunk, sizes in found if sizes.keys) or chunks[:1], sizes


def _piece(query: HostArray, key: Any, value: Any, which: str = "") -> tuple[Chunk, Sizes]:
    keys, values = as_host_array(f"key{which}", key), as_host_array(f"value{which}", value)
    dtypes = query.dtype, _dtype_of(keys), _dtype_of(values)
    sizes = _sizes(dtypes, (query.data.shape, keys.data.shape, values.data.shape), which)
    return Chunk(_in_place(keys), _in_place(values)), sizes


def _dtype_of(taken: HostArray) -> str:
    return taken.dtype if taken.scale is None else SCALED


def _in_place(taken: HostArray) -> HostArray:
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
        if shape[2] > MAX_TOKENS:
            raise ShapeError(f"{name} has {shape[2]} tokens; at most {MAX_TOKENS} fit one call")
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


def _bias(bias: Any, scores: tuple[int, ...], dtype: str) -> HostArray:
    taken = as_host_array("bias", bias)
    if taken.dtype not in {"float32", dtype}:
        raise DtypeError(
            f"bias has dtype {taken.dtype}; it is float32 or the query's {dtype} (a mask is boolean: use mask=)"
        )
    return HostArray(broadcast("bias", countable(taken.data), scores), taken.dtype, taken.like)


def _sinks(sinks: Any, query_heads: int) -> Array:
    taken = as_host_array("sinks", sinks)
    if taken.dtype not in FLOATS:
        raise DtypeError(f"sinks has dtype {taken.dtype}; keywise takes {', '.join(FLOATS)}")
    if taken.data.shape != (query_heads,):
        raise ShapeError(
            f"sinks has shape {list(taken.data.shape)}; it needs one score per query head: [{query_heads}]"
        )
    data = taken.floats(np.float64)
    if not (data <= MAX_FLOAT).all():
        raise OptionError(f"sinks holds NaN or more than {MAX_FLOAT:g}; every sink is a score (-inf for none)")
    return data
