"""Attention over some rows of a library, to be merged with that over the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keywise.attention.operation import Chunks, partial_with_stats
from keywise.attention.partial import Partial, merge

Array = NDArray[Any]
NO_ROW = -1
MOST_WEIGHTS = 2**22
"""Of one call of the kernel: rows times queries, whose weights are in memory at a time."""


@dataclass(frozen=True, eq=False)
class Part:
    """Attention of queries over some rows.

    Attributes
    ----------
    partial
        The partial; its last value is the score, whose mean gives the entropy.
    rows : [Q, top] int64
        Addresses of the heaviest rows, -1 where there are fewer.
    weights : [Q, top]
        Their weights among the rows of this part.
    """

    partial: Partial
    rows: Array
    weights: Array

    @classmethod
    def empty(cls, queries: int, value_dim: int, top: int) -> Part:
        """Make the part without rows: merging it changes nothing."""
        partial = Partial.empty(1, 1, queries, value_dim + 1)
        return cls(partial, np.full((queries, top), NO_ROW, np.int64), np.zeros((queries, top), np.float32))

    @classmethod
    def stacked(cls, parts: Sequence[Part]) -> Part:
        """Put parts of other queries over the same rows together."""
        partial = Partial(
            *(
                np.concatenate([getattr(part.partial, name) for part in parts], axis=2)
                for name in ("peak", "total", "values")
            )
        )
        return cls(partial, *(np.concatenate([getattr(part, name) for part in parts]) for name in ("rows", "weights")))

    @property
    def lse(self) -> Array:
        """Log-sum-exp [Q] of the scores."""
        lse: Array = self.partial.lse()[0, 0]
        return lse

    @property
    def value(self) -> Array:
        """Weighted values [Q, Dv]."""
        value: Array = self.partial.output()[0, 0, :, :-1]
        return value

    @property
    def entropy(self) -> Array:
        """Entropy [Q] of the weights, in nats; 0 without rows."""
        seen = self.partial.running_sum[0, 0] != 0
        mean_score = self.partial.output()[0, 0, :, -1]
        # Rounding may leave a hair below 0 where one row has all the weight.
        entropy: Array = np.maximum(np.where(seen, self.lse, 0) - mean_score, 0)
        return entropy


def attend_rows(
    queries: Array,
    keys: Sequence[Array],
    values: Sequence[Array] | None,
    addresses: Array | int,
    *,
    temperature: float,
    top: int,
    allowed: Array | None,
) -> Part:
    """Attend to rows in some arrays, one after the other.

    Values of another dtype are split into summands of the keys' dtype, so that nothing of them is lost.

    Parameters
    ----------
    queries, keys
        [Q, D] and arrays [N, D] of one dtype.
    values
        Arrays [N, Dv] beside the keys; None for no values.
    addresses
        Of the rows, or of the first of rows that follow each other.
    temperature, top
        See `Query`.
    allowed
        Whether a row may be attended to; None for all.
    """
    summands, factors = _split(values, keys)
    part, stats = partial_with_stats(
        queries[None, None],
        Chunks(piece[None, None] for piece in keys),
        Chunks(piece[None, None] for piece in summands),
        scale=1 / temperature,
        mask=None if allowed is None else allowed[None, None, None],
        top_k=min(top, sum(map(len, keys))),
    )
    width = 0 if values is None else values[0].shape[1]
    sums = np.empty((*part.running_sum.shape, width + 1), np.float32)
    sums[..., :width] = sum(
        factor * part.values[..., number * width : (number + 1) * width] for number, factor in enumerate(factors)
    )
    # The mean score is log-sum-exp less entropy; both have no meaning where no row was seen.
    seen = part.running_sum != 0
    sums[..., width] = np.where(seen, (np.where(seen, stats.lse, 0) - stats.entropy) * part.running_sum, 0)
    found = stats.top_keys[0, 0].astype(np.int64)
    rows = np.full((len(queries), top), NO_ROW, np.int64)
    named = addresses + found if isinstance(addresses, int) else addresses[np.maximum(found, 0)]
    rows[:, : found.shape[1]] = np.where(found < 0, NO_ROW, named)
    weights = np.zeros(rows.shape, np.float32)
    weights[:, : found.shape[1]] = stats.top_weights[0, 0]
    return Part(Partial(part.running_max, part.running_sum, sums), rows, weights)


def merge_parts(left: Part, right: Part) -> Part:
    """Merge two parts of the same queries over different rows, given in row order; of equal weights the first wins."""
    whole = merge(left.partial, right.partial)
    rows = np.concatenate([left.rows, right.rows], axis=1)
    weights = np.concatenate(
        [part.weights * part.partial.share_of(whole)[0, 0, :, None] for part in (left, right)], axis=1
    )
    order = np.argsort(np.where(rows == NO_ROW, 1.0, -weights), axis=1, kind="stable")[:, : left.rows.shape[1]]
    return Part(whole, np.take_along_axis(rows, order, axis=1), np.take_along_axis(weights, order, axis=1))


def _split(values: Sequence[Array] | None, keys: Sequence[Array]) -> tuple[Sequence[Array], list[float]]:
    """Write values as a sum of summands in the keys' dtype, side by side, and give the factor of each.

    No values are ones, which take no memory; the kernel uses as many at a time as it has lanes.
    """
    dtype = keys[0].dtype
    if values is None:
        return [np.broadcast_to(np.ones(16, dtype), (len(piece), 16)) for piece in keys], [1.0]
    if values[0].dtype == dtype:
        return values, [1.0]
    bits, count = np.finfo(dtype).nmant + 1, 2 if dtype == np.float32 else 3
    largest = max(float(np.abs(piece).max(initial=0.0)) for piece in values) or 1.0
    # A power of two, so that scaling changes no bit.
    first = float(2.0 ** np.floor(np.log2(largest)))
    factors = [first / 2.0 ** (bits * number) for number in range(count)]

    def summands(piece: Array) -> Array:
        rest, found = piece.astype(np.float64) / first, []
        for _ in factors:
            found.append(rest.astype(dtype))
            rest = (rest - found[-1]) * 2.0**bits
        return np.concatenate(found, axis=1)

    return [summands(piece) for piece in values], factors
