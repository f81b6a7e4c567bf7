"""What a reading should find out: the wish, resolved against the arrays."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from keywise.attention.arrays import FLOATS, Array, as_host_array, countable
from keywise.attention.checks import as_integer_array, broadcast
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import check_int

# Longer segments are not kept with the runs that they make: comparing them costs time, keeping them memory.
MOST_REMEMBERED = 1 << 15


class StatsRequest(NamedTuple):
    """What a reading should find out, and for which query rows.

    Parameters
    ----------
    top_k : int
        Number of heaviest keys per query; 0 for none.
    segment_bounds : int array [S+1], optional
        Increasing key positions; segment s holds the keys from ``bounds[s]`` to ``bounds[s + 1] - 1``.
    segment_ids : int array [N], optional
        The segment of every key, -1 for none.
    row_weights : array, optional
        Broadcasts to [B, Hq, Q]; weight of each query row in `key_mass`.
    key_mass : bool
        Whether to sum the weights per key.
    queries : (int, int), optional
        The first query to report and the one after the last; default all.
    """

    top_k: int = 8
    segment_bounds: Any = None
    segment_ids: Any = None
    query_weights: Any = None
    key_mass: bool = True
    queries: tuple[int, int] | None = None


class ResolvedStats(NamedTuple):
    """A `Want` resolved against the arrays."""

    top_k: int
    key_mass: bool
    first_row: int
    last_row: int
    """One past the last row read."""
    runs: Array
    """[R, 3] int64 (first key, key after the last, segment): maximal runs of one segment, in key order."""
    segment_count: int | None
    query_weights: Array | None
    """[B, Hq, Q] float32, broadcast by zero strides; None for 1 everywhere."""
    arrays: tuple[tuple[str, tuple[int, ...], str], ...]
    """Name, shape and dtype of every reading."""


_NO_RUNS = np.empty((0, 3), np.int64)


def resolve_stats(want: StatsRequest, scores: tuple[int, ...]) -> ResolvedStats:
    """Resolve what is wanted of scores [B, Hq, Q, N], or refuse."""
    batch, query_heads, queries, keys = scores
    first_row, last_row = (0, queries) if want.queries is None else want.queries
    if not 0 <= first_row <= last_row <= queries:
        raise OptionError("queries", f"must be two positions from 0 to {queries} in order", got=want.queries)
    runs, segment_count = _NO_RUNS, None
    if want.segment_bounds is not None and want.segment_ids is not None:
        raise OptionError("segment_bounds", "cannot be combined with segment_ids", remedy="give one of them")
    if want.segment_bounds is not None:
        runs, segment_count = _segment_ranges("segment_bounds", want.segment_bounds, keys)
    elif want.segment_ids is not None:
        runs, segment_count = _segment_ranges("segment_ids", want.segment_ids, keys)
    top = check_int("top_k", want.top_k, minimum=0)
    return ResolvedStats(
        top_k=top,
        key_mass=want.key_mass,
        first_row=first_row,
        last_row=last_row,
        runs=runs,
        segment_count=segment_count,
        query_weights=None
        if want.query_weights is None
        else _query_weights(want.query_weights, (batch, query_heads, queries)),
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
        ("top_mass", rows, "float32"),
    ]
    if keys is not None:
        arrays.append(("key_mass", (*rows[:2], keys), "float32"))
    if segment_count is not None:
        arrays.append(("segment_mass", (*rows, segment_count), "float32"))
    return tuple(arrays)


def _query_weights(query_weights: Any, shape: tuple[int, ...]) -> Array:
    taken = as_host_array("query_weights", query_weights)
    if taken.dtype not in FLOATS:
        raise DtypeError(f"query_weights has dtype {taken.dtype}; keywise takes {', '.join(FLOATS)}")
    data = broadcast("query_weights", countable(taken.floats(np.float32)), shape)
    if not np.isfinite(data).all():
        raise OptionError("query_weights holds NaN or infinity; every weight is finite")
    return data


def _segment_ranges(name: str, segments: Any, keys: int) -> tuple[Array, int]:
    """Return the ranges [R, 3] of keys that belong to one segment each, and the number of segments."""
    if isinstance(segments, (list, tuple)):
        segments = np.asarray(segments) if segments else np.empty(0, np.int64)
    data = as_integer_array(name, segments)
    if data.ndim != 1:
        raise ShapeError(name, "must have one axis", got=list(data.shape))
    data = data.astype(np.int64)
    # Every layer and every token asks for the same segments again.
    if data.size <= MOST_REMEMBERED:
        return _cached_ranges(name, data.tobytes(), keys)
    return _compute_ranges(name, data, keys)


@functools.lru_cache(maxsize=8)
def _cached_ranges(name: str, data: bytes, keys: int) -> tuple[Array, int]:
    ranges, segments = _compute_ranges(name, np.frombuffer(data, np.int64), keys)
    ranges.flags.writeable = False  # it is handed out again
    return ranges, segments


def _compute_ranges(name: str, data: Array, keys: int) -> tuple[Array, int]:
    return _ranges_from_bounds(data, keys) if name == "segment_bounds" else _ranges_from_ids(data, keys)


def _ranges_from_bounds(bounds: Array, keys: int) -> tuple[Array, int]:
    valid = bounds.size >= 2 and bool((np.diff(bounds) > 0).all()) and bounds[0] >= 0 and bounds[-1] <= keys
    if not valid:
        raise OptionError(
            "segment_bounds", f"must be two or more increasing key positions from 0 to {keys}, got {_short(bounds)}"
        )
    ranges = np.empty((bounds.size - 1, 3), np.int64)
    ranges[:, 0] = bounds[:-1]
    ranges[:, 1] = bounds[1:]
    ranges[:, 2] = np.arange(bounds.size - 1)
    return ranges, bounds.size - 1


def _ranges_from_ids(ids: Array, keys: int) -> tuple[Array, int]:
    if ids.size != keys:
        raise ShapeError("segment_ids", f"must have one id for each of the {keys} keys, got {ids.size} ids")
    if ids.size and (ids.min() < -1 or ids.max() >= keys):
        raise OptionError("segment_ids", f"must be below {keys}, or -1 for none, got {ids.min()} to {ids.max()}")
    edges = np.flatnonzero(np.diff(ids)) + 1
    starts = np.concatenate([[0], edges]) if ids.size else np.empty(0, np.int64)
    ends = np.concatenate([edges, [ids.size]]) if ids.size else np.empty(0, np.int64)
    ranges = np.stack([starts, ends, ids[starts.astype(np.int64)]], axis=1).astype(np.int64)
    return ranges[ranges[:, 2] >= 0], int(ids.max(initial=-1)) + 1


def _short(data: Array) -> str:
    return str(data.tolist()) if data.size <= 8 else f"[{data[0]}, {data[1]}, ..., {data[-1]}] ({data.size} numbers)"
