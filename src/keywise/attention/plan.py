"""What a reading should find out: the wish, resolved against the arrays."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np

from keywise.attention.arrays import FLOATS, Array, countable, take
from keywise.attention.checks import broadcast, whole, whole_numbers
from keywise.errors import DtypeError, OptionError, ShapeError

# Longer segments are not kept with the runs that they make: comparing them costs time, keeping them memory.
MOST_REMEMBERED = 1 << 15


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
    data = broadcast("row_weights", countable(taken.floats(np.float32)), shape)
    if not np.isfinite(data).all():
        raise OptionError("row_weights holds NaN or infinity; every weight is finite")
    return data


def _runs(segments: Any, keys: int) -> tuple[Array, int]:
    """Turn bounds or ids into runs; an array as long as the keys holds ids, anything else holds bounds."""
    if isinstance(segments, (list, tuple)):
        segments = np.asarray(segments) if segments else np.empty(0, np.int64)
    data = whole_numbers("segments", segments)
    if data.ndim != 1:
        raise ShapeError(f"segments has shape {list(data.shape)}; it is one row of bounds [S+1] or of ids [{keys}]")
    data = data.astype(np.int64)
    # The same segments are met again by every layer and every token.
    return _runs_met(data.tobytes(), keys) if data.size <= MOST_REMEMBERED else _runs_of(data, keys)


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
