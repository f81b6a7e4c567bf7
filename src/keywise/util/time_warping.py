"""Monotonic alignment of two sequences: dynamic time warping, and the median filter that precedes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from keywise.errors import OptionError, ShapeError
from keywise.util.checks import check_int


def warp_time(costs: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the cheapest monotonic path through a matrix of costs.

    The path begins at the first row and column, ends at the last, and proceeds by one row, one column or both. Cells on
    an anti-diagonal do not depend on each other, so each anti-diagonal is computed at once. Sums are rounded to float32
    and ties are broken as in openai-whisper, so that paths are equal.

    Sakoe and Chiba, "Dynamic programming algorithm optimization for spoken word recognition" (1978).

    Parameters
    ----------
    costs : float array [N, M]
        Cost of each cell. NaN is allowed and compares as neither smaller nor larger.

    Returns
    -------
    rows, columns : int array [P]
        The cells of the path, in order.

    Raises
    ------
    ShapeError
        `costs` has not two axes, or is empty.

    Examples
    --------
    >>> import numpy as np
    >>> rows, columns = warp_time(np.array([[0.0, 0.0, 9.0], [9.0, 9.0, 0.0]]))
    >>> rows.tolist(), columns.tolist()
    ([0, 0, 1], [0, 1, 2])
    """
    matrix = np.asarray(costs, np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ShapeError("costs", "must have two axes that are not empty", got=list(matrix.shape))
    return _trace_back(*_find_predecessors(matrix), *matrix.shape)


def _find_predecessors(matrix: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return whether the path comes to each cell from the diagonal, and whether from above, as [row + column, row]."""
    rows, columns = matrix.shape
    count = rows + columns - 1
    diagonals = _skew(matrix)
    from_diagonal, from_above = np.zeros((2, count, rows), np.bool_)
    # Entry i + 1 belongs to row i; entry 0 is the border above the matrix.
    states = np.full((3, rows + 1), np.inf, np.float32)
    states[1, 0] = 0.0
    is_less = np.empty(rows, np.bool_)
    for number in range(count):
        first, last = max(0, number - columns + 1), min(rows, number + 1)
        latest, before, current = (states[(turn - number) % 3] for turn in range(3))
        diagonal, above, left = before[first:last], latest[first:last], latest[first + 1 : last + 1]
        by_diagonal, by_above = from_diagonal[number, first:last], from_above[number, first:last]
        less = is_less[first:last]
        np.less(diagonal, above, out=by_diagonal)
        by_diagonal &= np.less(diagonal, left, out=less)
        np.less(above, diagonal, out=by_above)
        by_above &= np.less(above, left, out=less)
        cheapest = left.copy()
        np.copyto(cheapest, above, where=by_above)
        np.copyto(cheapest, diagonal, where=by_diagonal)
        current.fill(np.inf)
        np.add(diagonals[number, first:last], cheapest, out=current[first + 1 : last + 1], casting="same_kind")
    return from_diagonal, from_above


def _skew(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a matrix by anti-diagonals: [row + column, row]."""
    rows, columns = matrix.shape
    width = rows + columns
    flat = np.zeros(rows * width)
    step = flat.itemsize
    np.lib.stride_tricks.as_strided(flat, (rows, columns), ((width + 1) * step, step))[:] = matrix
    return np.ascontiguousarray(flat.reshape(rows, width).T)


def _trace_back(
    from_diagonal: NDArray[np.bool_], from_above: NDArray[np.bool_], rows: int, columns: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    row, column = rows - 1, columns - 1
    path = [(row, column)]
    while row > 0 or column > 0:
        is_diagonal = bool(row and column and from_diagonal[row + column, row])
        is_above = column == 0 or bool(row and from_above[row + column, row])
        row -= is_diagonal or is_above
        column -= is_diagonal or not is_above
        path.append((row, column))
    cells = np.array(path[::-1], np.intp)
    return cells[:, 0], cells[:, 1]


def filter_median(values: NDArray[np.floating[Any]], width: int) -> NDArray[np.floating[Any]]:
    """Return the median of the values around each value, along the last axis.

    The ends are continued by reflection. A row that is too short for that is returned unchanged. NaN counts as larger
    than every number.

    Parameters
    ----------
    values : float array [..., N]
        The values, without infinities.
    width : int
        Number of values around each value, itself included; odd.

    Raises
    ------
    OptionError
        `width` is even or below 1.

    Examples
    --------
    >>> import numpy as np
    >>> filter_median(np.array([0.0, 9.0, 1.0, 2.0]), 3).tolist()
    [9.0, 1.0, 2.0, 1.0]
    """
    if check_int("width", width, minimum=1) % 2 == 0:
        raise OptionError("width", "must be odd", got=width)
    half = width // 2
    if values.shape[-1] <= half:
        return values
    padding = [(0, 0)] * (values.ndim - 1) + [(half, half)]
    padded = np.pad(np.where(np.isnan(values), np.inf, values), padding, mode="reflect")
    medians = np.empty_like(values)
    # One matrix at a time stays in the CPU's cache.
    for index in np.ndindex(values.shape[:-2]):
        medians[index] = _select_medians(padded[index], width)
    medians[np.isinf(medians)] = np.nan
    return medians


def _select_medians(padded: NDArray[np.floating[Any]], width: int) -> NDArray[np.floating[Any]]:
    """Return the median of each window of a matrix along its last axis."""
    count = padded.shape[-1] - width + 1
    window = [padded[..., offset : offset + count].copy() for offset in range(width)]
    larger = np.empty_like(window[0])
    # Each pass moves the largest value to the end; the median is final after half of the passes.
    for end in range(width - 1, width // 2 - 1, -1):
        for at in range(end):
            np.maximum(window[at], window[at + 1], out=larger)
            np.minimum(window[at], window[at + 1], out=window[at])
            window[at + 1], larger = larger, window[at + 1]
    return window[width // 2]
