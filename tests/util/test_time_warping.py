"""Dynamic time warping against the definition, and the median filter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from keywise.errors import OptionError, ShapeError
from keywise.util.time_warping import filter_median, warp_time


def list_paths(rows, columns):
    """Yield every monotonic path through a matrix."""
    if (rows, columns) == (1, 1):
        yield [(0, 0)]
        return
    for down, right in ((1, 0), (0, 1), (1, 1)):
        if rows > down and columns > right:
            for path in list_paths(rows - down, columns - right):
                yield [*path, (rows - 1, columns - 1)]


@pytest.mark.parametrize(("rows", "columns"), itertools.product(range(1, 5), range(1, 5)))
def test_no_path_is_cheaper(rows, columns):
    costs = np.random.default_rng(rows * 5 + columns).normal(size=(rows, columns)) ** 2
    cheapest = min(sum(costs[cell] for cell in path) for path in list_paths(rows, columns))
    path = list(zip(*warp_time(costs), strict=True))
    assert path[0] == (0, 0)
    assert path[-1] == (rows - 1, columns - 1)
    assert sum(costs[cell] for cell in path) == pytest.approx(cheapest)


def test_nan_ends_in_a_path():
    rows, columns = warp_time(np.full((3, 4), np.nan))
    assert (rows[-1], columns[-1]) == (2, 3)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (3,)])
def test_empty_costs_are_refused(shape):
    with pytest.raises(ShapeError):
        warp_time(np.zeros(shape))


@pytest.mark.parametrize("width", [1, 3, 5, 7, 9])
def test_median_of_each_window(width):
    values = np.random.default_rng(width).normal(size=(2, 3, 20)).astype(np.float32)
    half = width // 2
    padded = np.pad(values, [(0, 0), (0, 0), (half, half)], mode="reflect")
    expected = np.median(np.lib.stride_tricks.sliding_window_view(padded, width, axis=-1), axis=-1)
    np.testing.assert_array_equal(filter_median(values, width), expected)


@pytest.mark.parametrize("width", [0, 2, -1])
def test_width_must_be_odd(width):
    with pytest.raises(OptionError):
        filter_median(np.zeros((1, 9)), width)
