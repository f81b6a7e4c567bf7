"""The algebra at the centre: attention over part of the keys, and how parts become the whole.

A partial is (running_max, running_sum, weighted values). `merge` is associative up to rounding and the empty partial is its exact
identity. Source: Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory" (2021), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keywise.attention.arrays import Array
from keywise.errors import DtypeError, OptionError, ShapeError


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention over part of the keys; all arrays are NumPy float32 (float64 from float64 inputs).

    Attributes
    ----------
    running_max : [B, Hq, Q]
        Largest score; -inf when no key of this part is visible.
    running_sum : [B, Hq, Q]
        Sum of exp(score - running_max).
    values : [B, Hq, Q, Dv]
        Sum of exp(score - running_max) x value.
    """

    running_max: Array
    running_sum: Array
    values: Array

    @classmethod
    def empty(cls, batch: int, heads: int, queries: int, value_dim: int) -> Partial:
        """Make the identity of `merge`: no key seen."""
        rows = (batch, heads, queries)
        return cls(
            np.full(rows, -np.inf, np.float32), np.zeros(rows, np.float32), np.zeros((*rows, value_dim), np.float32)
        )

    def lse(self, sinks: Array | None = None) -> Array:
        """Give the log-sum-exp [B, Hq, Q] in nats, sinks [Hq] included; -inf for a row without keys."""
        with np.errstate(divide="ignore"):
            lse = np.where(self.running_sum == 0, -np.inf, self.running_max + np.log(self.running_sum))
        if sinks is not None:
            self._check_sinks(sinks)
            lse = np.where(self.running_sum == 0, -np.inf, np.logaddexp(lse, np.asarray(sinks)[:, None]))
        return lse.astype(self.running_max.dtype)

    def output(self, sinks: Array | None = None) -> Array:
        """Give the output of attention [B, Hq, Q, Dv]; 0 for a row without keys."""
        seen = self.running_sum != 0
        denominator = np.where(seen, self.running_sum, 1)
        if sinks is not None:
            self._check_sinks(sinks)
            with np.errstate(over="ignore"):
                denominator = denominator + np.exp(np.asarray(sinks)[:, None] - np.where(seen, self.running_max, 0))
        return np.where(seen[..., None], self.values / denominator[..., None], 0).astype(self.values.dtype)

    def share_of(self, whole: Partial) -> Array:
        """Give the weight [B, Hq, Q] of this part's keys together in a whole that it was merged into.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> x = np.ones((1, 1, 4, 8), np.float32)
        >>> part, rest = kw.partial(x, x[:, :, :1], x[:, :, :1]), kw.partial(x, x[:, :, 1:], x[:, :, 1:])
        >>> part.share_of(kw.merge(part, rest)).tolist()
        [[[0.25, 0.25, 0.25, 0.25]]]
        """
        seen = self.running_sum != 0
        shift = np.where(seen, self.running_max, 0) - np.where(seen, whole.running_max, 0)
        return np.where(seen, np.exp(shift) * self.running_sum / np.where(seen, whole.running_sum, 1), 0).astype(
            self.running_sum.dtype
        )

    def _check_sinks(self, sinks: Array) -> None:
        if np.shape(sinks) != (self.running_max.shape[1],):
            raise ShapeError(
                f"sinks has shape {list(np.shape(sinks))}; it needs one score per head: [{self.running_max.shape[1]}]"
            )


def merge(*partials: Partial) -> Partial:
    """Merge partials over different keys of the same queries, given in key order.

    That the keys differ is the caller's to see to: a key in two partials counts twice.

    Raises
    ------
    OptionError
        Without any partial.
    DtypeError
        When an argument is not a partial.
    ShapeError
        When the partials belong to different queries.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 6, 8)).astype(np.float32)
    >>> parts = [kw.partial(x, x[:, :, :4], x[:, :, :4]), kw.partial(x, x[:, :, 4:], x[:, :, 4:])]
    >>> bool(np.allclose(kw.merge(*parts).output(), kw.attend(x, x, x), atol=1e-6))
    True
    """
    if not partials:
        raise OptionError("merge() needs at least one partial")
    _check_same_queries(partials)
    merged = partials[0]
    for part in partials[1:]:
        merged = _merge_two(merged, part)
    return merged


def _check_same_queries(partials: Sequence[Partial]) -> None:
    for number, part in enumerate(partials):
        if not isinstance(part, Partial):
            raise DtypeError(f"partial {number} is a {type(part).__name__}; merge what keywise.partial() gave")
    first = partials[0].values.shape
    for number, part in enumerate(partials):
        if part.values.shape != first:
            raise ShapeError(f"partial {number} has values of shape {list(part.values.shape)}, partial 0 {list(first)}")


def _merge_two(left: Partial, right: Partial) -> Partial:
    running_max = np.maximum(left.running_max, right.running_max)
    anchor = np.where(np.isneginf(running_max), 0, running_max)
    from_left, from_right = np.exp(left.running_max - anchor), np.exp(right.running_max - anchor)
    return Partial(
        running_max,
        left.running_sum * from_left + right.running_sum * from_right,
        left.values * from_left[..., None] + right.values * from_right[..., None],
    )
