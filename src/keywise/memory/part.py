"""Attention over some rows of a library, to be merged with that over the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keywise.attention.operation import read_partial
from keywise.attention.partial import Partial, merge

Array = NDArray[Any]
NO_ROW = -1
MOST_ROWS = 65536
"""Rows of one call of the kernel: the weights of all its rows and queries are in memory at a time."""


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
        seen = self.partial.total[0, 0] != 0
        mean_score = self.partial.output()[0, 0, :, -1]
        # Rounding may leave a hair below 0 where one row has all the weight.
        entropy: Array = np.maximum(np.where(seen, self.lse, 0) - mean_score, 0)
        return entropy


def attend_rows(
    queries: Array,
    keys: Array,
    values: Array | None,
    rows: Array,
    *,
    temperature: float,
    top: int,
    allowed: Array | None,
) -> Part:
    """Attend to rows: queries [Q, D], keys [N, D] of one dtype, values [N, Dv] or None, addresses of the rows [N].

    Values of another dtype are split into summands of the keys' dtype, so that nothing of them is lost.
    """
    summands, factors = _split(values, keys)
    part, reading = read_partial(
        queries[None, None],
        keys[None, None],
        summands[None, None],
        scale=1 / temperature,
        mask=None if allowed is None else allowed[None, None, None],
        top=min(top, len(keys)),
    )
    width = 0 if values is None else values.shape[1]
    sums = np.zeros((*part.total.shape, width))
    for number, factor in enumerate(factors):
        sums += factor * part.values[..., number * width : (number + 1) * width]
    seen = part.total != 0
    mean_score = np.where(seen, reading.lse, 0) - reading.entropy
    scores = np.where(seen, mean_score * part.total, 0)
    found = reading.top_keys[0, 0]
    missing = ((0, 0), (0, top - found.shape[1]))
    return Part(
        Partial(part.peak, part.total, np.concatenate([sums, scores[..., None]], axis=-1, dtype=np.float32)),
        np.pad(np.where(found < 0, NO_ROW, rows[np.maximum(found, 0)]), missing, constant_values=NO_ROW),
        np.pad(reading.top_weights[0, 0], missing),
    )


def merge_parts(left: Part, right: Part) -> Part:
    """Merge two parts of the same queries over different rows, given in row order; of equal weights the first wins."""
    whole = merge(left.partial, right.partial)
    rows = np.concatenate([left.rows, right.rows], axis=1)
    weights = np.concatenate(
        [part.weights * part.partial.share_of(whole)[0, 0, :, None] for part in (left, right)], axis=1
    )
    order = np.argsort(np.where(rows == NO_ROW, 1.0, -weights), axis=1, kind="stable")[:, : left.rows.shape[1]]
    return Part(whole, np.take_along_axis(rows, order, axis=1), np.take_along_axis(weights, order, axis=1))


def _split(values: Array | None, keys: Array) -> tuple[Array, list[float]]:
    """Write values as a sum of summands in the keys' dtype, side by side, and give the factor of each.

    No values are a single 1, which takes no memory.
    """
    if values is None:
        return np.broadcast_to(keys.dtype.type(1), (len(keys), 1)), [1.0]
    if values.dtype == keys.dtype:
        return values, [1.0]
    bits = np.finfo(keys.dtype).nmant + 1
    # A power of two, so that scaling changes no bit.
    factor = float(2.0 ** np.floor(np.log2(float(np.abs(values).max(initial=0.0)) or 1.0)))
    rest = values.astype(np.float64) / factor
    summands, factors = [], []
    for _ in range(2 if keys.dtype == np.float32 else 3):
        summands.append(rest.astype(keys.dtype))
        factors.append(factor)
        rest = (rest - summands[-1]) * 2.0**bits
        factor /= 2.0**bits
    return np.concatenate(summands, axis=1), factors
