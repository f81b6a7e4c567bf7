"""Which statistics a call computes: the request of a caller, checked against the sizes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from keywise.attention.arrays import Array, as_element_aligned
from keywise.attention.checks import as_float_array, as_integer_array, broadcast
from keywise.attention.native import Inputs, StatsPlan
from keywise.attention.sizes import Sizes
from keywise.errors import OptionError, ShapeError
from keywise.util.checks import MAX_TOKENS, check_int

# Longer segments are not cached, because comparing them takes time and storing them takes memory.
_MAX_CACHED_KEYS = 1 << 15
MAX_PADDED_TOP_K = 64
"""The largest `top_k` that is padded where there are fewer keys, so that results have one shape."""


class StatsRequest(NamedTuple):
    """Which statistics to compute, and for which queries.

    Parameters
    ----------
    top_k : int
        Number of heaviest keys per query; 0 for none. Above `MAX_PADDED_TOP_K`, at most the number of keys.
    segment_bounds : int array [S+1], optional
        Increasing key positions; segment s contains the keys from ``bounds[s]`` to ``bounds[s + 1] - 1``.
    segment_ids : int array [N], optional
        The segment of every key, -1 for none.
    query_weights : array, optional
        Broadcasts to [B, Hq, Q]; weight of each query in `key_mass`.
    key_mass : bool
        Whether to sum the weights per key.
    queries : (int, int), optional
        The first query to report and the one after the last; default all.

    Examples
    --------
    >>> StatsRequest(top_k=2, queries=(3, 5)).key_mass
    True
    """

    top_k: int = 8
    segment_bounds: Any = None
    segment_ids: Any = None
    query_weights: Any = None
    key_mass: bool = True
    queries: tuple[int, int] | None = None


class _StatsFields(NamedTuple):
    top_k: int
    key_mass: bool
    first_query: int
    last_query: int
    segment_count: int | None = None
    segment_ranges: Array | None = None
    query_weights: Array | None = None


class ResolvedStats(_StatsFields):
    """A `StatsRequest` checked against the sizes of a call.

    Attributes
    ----------
    top_k, key_mass
        As requested.
    first_query, last_query
        The first query to report and the one after the last.
    segment_count
        Number of segments; None without segments.
    segment_ranges
        [R, 3] int64 (first key, key after the last, segment): maximal ranges of one segment, in key order.
    query_weights
        [B, Hq, Q] float32, broadcast by zero strides; None for 1 everywhere.
    """

    @functools.cached_property
    def native(self) -> StatsPlan:
        """The request in the form that the kernels read."""
        return StatsPlan(**self._asdict())


def resolve_stats(request: StatsRequest, sizes: Sizes | Inputs) -> ResolvedStats:
    """Check a request against the sizes of a call.

    Parameters
    ----------
    request
        What to compute.
    sizes
        The call's sizes.

    Raises
    ------
    DtypeError, ShapeError, OptionError
        A field has the wrong type, does not fit or is out of range.

    Examples
    --------
    >>> from keywise.attention.sizes import Sizes
    >>> sizes = Sizes(batch=1, query_heads=2, key_heads=2, queries=3, keys=5, head_dim=8, value_dim=8)
    >>> resolve_stats(StatsRequest(segment_bounds=[0, 2, 5]), sizes).segment_ranges.tolist()
    [[0, 2, 0], [2, 5, 1]]
    """
    first, last = (0, sizes.queries) if request.queries is None else request.queries
    if not 0 <= first <= last <= sizes.queries:
        raise OptionError("queries", f"must be two positions from 0 to {sizes.queries} in order", got=request.queries)
    segments = _read_segments(request)
    top_k = check_int("top_k", request.top_k, minimum=0)
    if top_k > MAX_PADDED_TOP_K:
        top_k = min(top_k, sizes.keys)
    if segments is None:
        fields = _resolve_fields(top_k, request.key_mass, first, last)
    elif segments[1].size <= _MAX_CACHED_KEYS:
        name, numbers = segments
        fields = _resolve_segments((top_k, request.key_mass, first, last), name, numbers.tobytes(), sizes.keys)
    else:
        ranges, count = _find_ranges(*segments, sizes.keys)
        fields = ResolvedStats(top_k, request.key_mass, first, last, count, ranges)
    if request.query_weights is None:
        return fields
    return fields._replace(query_weights=_check_query_weights(request.query_weights, sizes.scores[:3]))


# The layers of a model and its decoding steps share a few requests, whose native form is kept with them.
@functools.lru_cache(maxsize=64)
def _resolve_fields(top_k: int, key_mass: bool, first_query: int, last_query: int) -> ResolvedStats:
    return ResolvedStats(top_k, key_mass, first_query, last_query)


@functools.lru_cache(maxsize=8)
def _resolve_segments(fields: tuple[int, bool, int, int], name: str, numbers: bytes, keys: int) -> ResolvedStats:
    ranges, count = _find_ranges(name, np.frombuffer(numbers, np.int64), keys)
    ranges.flags.writeable = False  # later calls return the same array
    return ResolvedStats(*fields, count, ranges)


def _check_query_weights(query_weights: Any, shape: tuple[int, ...]) -> Array:
    array = as_float_array("query_weights", query_weights)
    with np.errstate(over="ignore"):
        weights = array.floats(np.float32)
    finite = np.isfinite(weights)
    if not finite.all():
        index = np.argwhere(~finite)[0].tolist()
        raise OptionError("query_weights", f"must be finite in float32, got {weights[tuple(index)]} at index {index}")
    return broadcast("query_weights", as_element_aligned(weights), shape)


def _read_segments(request: StatsRequest) -> tuple[str, Array] | None:
    """Return the name and the numbers of the argument that describes segments."""
    if request.segment_bounds is None:
        if request.segment_ids is None:
            return None
        name, numbers = "segment_ids", request.segment_ids
    elif request.segment_ids is None:
        name, numbers = "segment_bounds", request.segment_bounds
    else:
        raise OptionError("segment_bounds", "must not be combined with segment_ids", remedy="pass one of them")
    array = as_integer_array(name, numbers)
    if array.ndim != 1:
        raise ShapeError(name, f"must have one axis, got shape {list(array.shape)}")
    if array.dtype == np.uint64 and array.size and array.max() > MAX_TOKENS:  # int64 may not hold it
        raise OptionError(name, f"must be at most {MAX_TOKENS}, got {array.max()}")
    return name, array.astype(np.int64, copy=False)


def _find_ranges(name: str, numbers: Array, keys: int) -> tuple[Array, int]:
    """Return ranges [R, 3] of keys of one segment each, and the number of segments."""
    if name == "segment_bounds":
        return _make_ranges_from_bounds(numbers, keys)
    return _make_ranges_from_ids(numbers, keys)


def _make_ranges_from_bounds(bounds: Array, keys: int) -> tuple[Array, int]:
    in_range = bounds.size >= 2 and bounds[0] >= 0 and bounds[-1] <= keys
    if not in_range or (bounds[1:] <= bounds[:-1]).any():
        raise OptionError(
            "segment_bounds", f"must be two or more increasing key positions from 0 to {keys}, got {_shorten(bounds)}"
        )
    ranges = np.empty((bounds.size - 1, 3), np.int64)
    ranges[:, 0] = bounds[:-1]
    ranges[:, 1] = bounds[1:]
    ranges[:, 2] = np.arange(bounds.size - 1)
    return ranges, bounds.size - 1


def _make_ranges_from_ids(ids: Array, keys: int) -> tuple[Array, int]:
    if ids.size != keys:
        raise ShapeError("segment_ids", f"must have one id for each of the {keys} keys, got {ids.size} ids")
    if ids.size and (ids.min() < -1 or ids.max() >= keys):
        raise OptionError("segment_ids", f"must be below {keys}, or -1 for none, got {ids.min()} to {ids.max()}")
    edges = np.flatnonzero(np.diff(ids)) + 1
    starts = np.concatenate([[0], edges]) if ids.size else np.empty(0, np.int64)
    ends = np.concatenate([edges, [ids.size]]) if ids.size else np.empty(0, np.int64)
    ranges = np.stack([starts, ends, ids[starts.astype(np.int64)]], axis=1).astype(np.int64)
    return ranges[ranges[:, 2] >= 0], int(ids.max(initial=-1)) + 1


def _shorten(numbers: Array) -> str:
    if numbers.size <= 8:
        return str(numbers.tolist())
    return f"[{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}] ({numbers.size} numbers)"
