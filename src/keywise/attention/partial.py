"""Attention over part of the keys, and the merging of parts.

A partial is (running max, running sum, weighted values). `merge` is associative up to rounding, and the empty partial
is its exact identity. Source: Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory" (2021), section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keywise.attention.arrays import Array
from keywise.attention.checks import check_sinks
from keywise.attention.native import DefaultFloatMode
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import check_int

# The natural logarithm of 2^40: sums relative to a running max that is larger by this leave room for many more.
_HEADROOM = 40 * np.log(2)


@dataclass(frozen=True, eq=False)
class Partial:
    """Attention over part of the keys, as NumPy float32 arrays (float64 from float64 inputs).

    Attributes
    ----------
    running_max : [B, Hq, Q]
        Largest score, or more where `values` would overflow; -inf when no key of this part is visible.
    running_sum : [B, Hq, Q]
        Sum of exp(score - running_max).
    values : [B, Hq, Q, Dv]
        Sum of exp(score - running_max) x value.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.ones((1, 1, 4, 8), np.float32)
    >>> kw.partial(x, x[:, :, :3], x[:, :, :3]).running_sum.tolist()
    [[[3.0, 3.0, 3.0, 3.0]]]
    """

    running_max: Array
    running_sum: Array
    values: Array

    @classmethod
    def empty(cls, batch: int, heads: int, queries: int, value_dim: int) -> Partial:
        """Return the identity of `merge`: a partial without keys.

        Parameters
        ----------
        batch, heads, queries, value_dim : int
            Sizes of the partial.

        Raises
        ------
        DtypeError, OptionError
            A size is not an integer, or is negative.

        Examples
        --------
        >>> import keywise as kw
        >>> float(kw.Partial.empty(1, 2, 3, 8).lse().max())
        -inf
        """
        sizes = {"batch": batch, "heads": heads, "queries": queries, "value_dim": value_dim}
        *shape, value_dim = (check_int(name, size, minimum=0) for name, size in sizes.items())
        return cls(
            running_max=np.full(shape, -np.inf, np.float32),
            running_sum=np.zeros(shape, np.float32),
            values=np.zeros([*shape, value_dim], np.float32),
        )

    def lse(self, sinks: Array | None = None) -> Array:
        """Return the log-sum-exp in nats.

        Parameters
        ----------
        sinks : [Hq], optional
            An extra score per head that is included.

        Returns
        -------
        [B, Hq, Q]
            -inf for a query without keys.

        Raises
        ------
        DtypeError, ShapeError, OptionError
            There is not one number per head.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> x = np.zeros((1, 1, 1, 8), np.float32)
        >>> kw.partial(x, x, x).lse().tolist()
        [[[0.0]]]
        """
        if sinks is not None:
            sinks = check_sinks(sinks, self.running_max.shape[1])
        with DefaultFloatMode(), np.errstate(divide="ignore"):
            lse = self.running_max + np.log(self.running_sum)
            if sinks is not None:
                lse = np.logaddexp(lse, sinks[:, None])
            return np.where(self.running_sum == 0, -np.inf, lse).astype(self.running_max.dtype)

    def output(self, sinks: Array | None = None) -> Array:
        """Return the output of attention over the keys of this partial.

        Parameters
        ----------
        sinks : [Hq], optional
            An extra score per head that takes weight and adds no value.

        Returns
        -------
        [B, Hq, Q, Dv]
            0 for a query without keys.

        Raises
        ------
        DtypeError, ShapeError, OptionError
            There is not one number per head.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> x = np.ones((1, 1, 2, 8), np.float32)
        >>> bool((kw.partial(x, x, x).output() == x).all())
        True
        """
        if sinks is not None:
            sinks = check_sinks(sinks, self.running_max.shape[1])
        has_keys = self.running_sum != 0
        denominator = np.where(has_keys, self.running_sum, 1)
        with DefaultFloatMode(), np.errstate(over="ignore"):
            if sinks is not None:
                running_max = np.where(has_keys, self.running_max, 0)
                denominator = denominator + np.exp(sinks[:, None] - running_max)
            output = self.values / denominator[..., None]
            return np.where(has_keys[..., None], output, 0).astype(self.values.dtype)

    def share_of(self, merged: Partial) -> Array:
        """Return the weight of this part's keys in a partial that it was merged into.

        Parameters
        ----------
        merged : Partial
            The result of the merge.

        Returns
        -------
        [B, Hq, Q]
            From 0 to 1.

        Raises
        ------
        DtypeError, ShapeError
            `merged` is not a partial, or belongs to different queries.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> x = np.ones((1, 1, 4, 8), np.float32)
        >>> part, rest = kw.partial(x, x[:, :, :1], x[:, :, :1]), kw.partial(x, x[:, :, 1:], x[:, :, 1:])
        >>> part.share_of(kw.merge(part, rest)).tolist()
        [[[0.25, 0.25, 0.25, 0.25]]]
        """
        _check_same_queries((self, merged))
        has_keys = self.running_sum != 0
        with DefaultFloatMode():
            shift = np.where(has_keys, self.running_max, 0) - np.where(has_keys, merged.running_max, 0)
            share = np.exp(shift) * self.running_sum / np.where(has_keys, merged.running_sum, 1)
            return np.where(has_keys, share, 0).astype(self.running_sum.dtype)


def merge(*partials: Partial) -> Partial:
    """Merge partials over different keys of the same queries.

    A key that is in two partials counts twice.

    Parameters
    ----------
    *partials : Partial
        In key order.

    Returns
    -------
    Partial

    Raises
    ------
    OptionError
        There is no partial.
    DtypeError
        An argument is not a partial.
    ShapeError
        The partials belong to different queries.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 6, 8)).astype(np.float32)
    >>> parts = [kw.partial(x, x[:, :, :4], x[:, :, :4]), kw.partial(x, x[:, :, 4:], x[:, :, 4:])]
    >>> bool(np.allclose(kw.merge(*parts).output(), kw.attend(x, x, x), atol=1e-6))
    True
    """
    if not partials:
        raise OptionError("partials", "must be one partial or more, got none")
    _check_same_queries(partials)
    merged = partials[0]
    with DefaultFloatMode():
        for part in partials[1:]:
            merged = _merge_two(merged, part)
    return merged


def _check_same_queries(partials: Sequence[Partial]) -> None:
    for number, part in enumerate(partials):
        if not isinstance(part, Partial):
            raise DtypeError(
                "partials",
                f"must be results of keywise.partial, got a {type(part).__name__} at index {number}",
            )
    first = partials[0].values.shape
    for number, part in enumerate(partials):
        if part.values.shape != first:
            raise ShapeError(
                "partials",
                f"must have the same shape, got values {list(part.values.shape)} at index {number} and {list(first)}",
            )
        if not part.running_max.shape == part.running_sum.shape == first[:-1]:
            raise ShapeError(
                "partials",
                f"must have one running max and sum per query, got {list(part.running_max.shape)} and "
                f"{list(part.running_sum.shape)} for values {list(first)} at index {number}",
            )


def _merge_two(left: Partial, right: Partial) -> Partial:
    running_max = np.maximum(left.running_max, right.running_max)
    with np.errstate(over="ignore", invalid="ignore"):
        merged = _add(left, right, running_max)
        overflowed = np.asarray(~np.isfinite(merged.values).all(axis=3))
        if not overflowed.any():
            return merged
        raised = _add(left, right, running_max + np.where(overflowed, _HEADROOM, 0).astype(running_max.dtype))
    # A row of NaN or infinite values stays as it is.
    replaced = overflowed & np.isfinite(raised.values).all(axis=3)
    return Partial(
        np.where(replaced, raised.running_max, merged.running_max),
        np.where(replaced, raised.running_sum, merged.running_sum),
        np.where(replaced[..., None], raised.values, merged.values),
    )


def _add(left: Partial, right: Partial, running_max: Array) -> Partial:
    """Add two partials relative to a running max that is at least that of both."""
    # -inf - -inf would be NaN.
    finite_max = np.where(np.isneginf(running_max), 0, running_max)
    left_factor = np.exp(left.running_max - finite_max)
    right_factor = np.exp(right.running_max - finite_max)
    return Partial(
        running_max,
        left.running_sum * left_factor + right.running_sum * right_factor,
        left.values * left_factor[..., None] + right.values * right_factor[..., None],
    )
