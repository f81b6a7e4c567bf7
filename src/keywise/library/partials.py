"""Attention over some rows of a library, and its merging."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Final

import numpy as np

from keywise.attention.operation import Chunks, compute_partial_with_stats
from keywise.attention.partial import Partial, merge
from keywise.library.arrow_arrays import Array
from keywise.library.query import Query

NO_ROW: Final = -1

ONES_WIDTH: Final = 16
"""Width of the placeholder values of a query without values: the kernel computes this many at a time anyway."""


@dataclass(frozen=True, eq=False)
class LibraryPartial:
    """Attention of queries over some rows.

    Attributes
    ----------
    partial
        One batch and one head; the last column of its values is the score, whose mean gives the entropy.
    rows : [Q, top] int64
        Addresses of the heaviest rows, -1 where there are fewer.
    weights : [Q, top] float32
        Weights of these rows among the rows of this partial.
    """

    partial: Partial
    rows: Array
    weights: Array

    @classmethod
    def empty(cls, queries: int, value_dim: int, top: int) -> LibraryPartial:
        """Return the identity of `merge_partials`: attention over no rows."""
        partial = Partial.empty(1, 1, queries, value_dim + 1)
        return cls(partial, np.full((queries, top), NO_ROW, np.int64), np.zeros((queries, top), np.float32))

    @property
    def lse(self) -> Array:
        """Log-sum-exp [Q] of the scores."""
        lse: Array = self.partial.lse()[0, 0]
        return lse

    @property
    def value(self) -> Array:
        """Weighted mean [Q, Dv] of the values."""
        value: Array = self.partial.output()[0, 0, :, :-1]
        return value

    @property
    def entropy(self) -> Array:
        """Entropy [Q] of the weights, in nats; 0 without rows."""
        has_rows = self.partial.running_sum[0, 0] != 0
        mean_score = self.partial.output()[0, 0, :, -1]
        # Rounding may leave a little below 0 where one row has all the weight.
        entropy: Array = np.maximum(np.where(has_rows, self.lse, 0) - mean_score, 0)
        return entropy


def attend_rows(
    query: Query,
    keys: Sequence[Array],
    values: Sequence[Array] | None,
    addresses: Array | int,
    allowed: Array | None = None,
) -> LibraryPartial:
    """Compute attention over rows that lie in some arrays, one after the other.

    Values of another dtype are split into summands of the keys' dtype, which keeps their precision.

    Parameters
    ----------
    query
        The queries and `top`.
    keys
        Arrays [N, D] in the dtype of the queries.
    values
        Arrays [N, Dv], one per array of keys; None for no values.
    addresses
        Addresses [N] of the rows, or the address of the first of consecutive rows.
    allowed : [N] of bool, optional
        Rows that may be attended to; None for all.

    Returns
    -------
    LibraryPartial
        Attention over these rows.
    """
    summands, factors = _split_values(values, keys)
    bias = query.make_bias(addresses, sum(map(len, keys)))
    partial, stats = compute_partial_with_stats(
        query.queries[None, None],
        Chunks(chunk[None, None] for chunk in keys),
        Chunks(chunk[None, None] for chunk in summands),
        scale=1 / query.temperature,
        mask=None if allowed is None else allowed[None, None, None],
        bias=None if bias is None else bias[None, None],
        top_k=min(query.top, sum(map(len, keys))),
    )
    width = 0 if values is None else values[0].shape[1]
    sums = np.empty((*partial.running_sum.shape, width + 1), np.float32)
    sums[..., :width] = sum(
        factor * partial.values[..., index * width : (index + 1) * width] for index, factor in enumerate(factors)
    )
    # The mean score is LSE minus entropy; neither is defined where no row is visible.
    has_rows = partial.running_sum != 0
    mean_scores = np.where(has_rows, stats.lse, 0) - stats.entropy
    sums[..., width] = np.where(has_rows, mean_scores * partial.running_sum, 0)

    top_keys = stats.top_keys[0, 0].astype(np.int64)
    top_count = top_keys.shape[1]
    top_addresses = addresses + top_keys if isinstance(addresses, int) else addresses[np.maximum(top_keys, 0)]
    rows = np.full((len(query.queries), query.top), NO_ROW, np.int64)
    rows[:, :top_count] = np.where(top_keys < 0, NO_ROW, top_addresses)
    weights = np.zeros(rows.shape, np.float32)
    weights[:, :top_count] = stats.top_weights[0, 0]
    return LibraryPartial(Partial(partial.running_max, partial.running_sum, sums), rows, weights)


def merge_partials(partials: Iterable[LibraryPartial], query: Query) -> LibraryPartial:
    """Merge partials of the same queries over different rows, in row order.

    Of rows with equal weights the first one ranks higher.

    Parameters
    ----------
    partials
        Any number of them.
    query
        Their query; it has the shape of the result when there is no partial.

    Returns
    -------
    LibraryPartial
        Attention over all their rows.
    """
    remaining = iter(partials)
    first = next(remaining, None)
    if first is None:
        return LibraryPartial.empty(len(query.queries), query.value_dim, query.top)
    return reduce(_merge_two, remaining, first)


def stack_partials(partials: Sequence[LibraryPartial]) -> LibraryPartial:
    """Return one partial of the queries of several partials, in their order."""
    return LibraryPartial(
        Partial(
            np.concatenate([each.partial.running_max for each in partials], axis=2),
            np.concatenate([each.partial.running_sum for each in partials], axis=2),
            np.concatenate([each.partial.values for each in partials], axis=2),
        ),
        np.concatenate([each.rows for each in partials]),
        np.concatenate([each.weights for each in partials]),
    )


def _merge_two(left: LibraryPartial, right: LibraryPartial) -> LibraryPartial:
    merged = merge(left.partial, right.partial)
    top = left.rows.shape[1]
    rows = np.concatenate([left.rows, right.rows], axis=1)
    weights = np.concatenate(
        [side.weights * side.partial.share_of(merged)[0, 0, :, None] for side in (left, right)], axis=1
    )
    order = np.argsort(np.where(rows == NO_ROW, 1.0, -weights), axis=1, kind="stable")[:, :top]
    return LibraryPartial(merged, np.take_along_axis(rows, order, axis=1), np.take_along_axis(weights, order, axis=1))


def _split_values(values: Sequence[Array] | None, keys: Sequence[Array]) -> tuple[Sequence[Array], list[float]]:
    """Split values into summands of the keys' dtype, side by side.

    Returns the summands of each chunk and the factor of each summand. Without values the summands are ones, broadcast
    so that they take no memory.
    """
    dtype = keys[0].dtype
    if values is None:
        ones = np.ones(ONES_WIDTH, dtype)
        return [np.broadcast_to(ones, (len(chunk), ONES_WIDTH)) for chunk in keys], [1.0]
    if values[0].dtype == dtype:
        return values, [1.0]
    summand_bits = np.finfo(dtype).nmant + 1
    summand_count = 2 if dtype == np.float32 else 3
    largest = max(float(np.abs(chunk).max(initial=0.0)) for chunk in values) or 1.0
    # A power of two, so that scaling changes no bit.
    unit = float(2.0 ** np.floor(np.log2(largest)))
    factors = [unit / 2.0 ** (summand_bits * index) for index in range(summand_count)]
    return [_split_chunk(chunk, unit, dtype, summand_bits, summand_count) for chunk in values], factors


def _split_chunk(values: Array, unit: float, dtype: np.dtype, bits: int, count: int) -> Array:
    remainder = values.astype(np.float64) / unit
    summands: list[Array] = []
    for _ in range(count):
        summand = remainder.astype(dtype)
        summands.append(summand)
        remainder = (remainder - summand) * 2.0**bits
    return np.concatenate(summands, axis=1)
