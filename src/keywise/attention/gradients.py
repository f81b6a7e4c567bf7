"""What a backward pass takes and returns, as plain data."""

from __future__ import annotations

from typing import Any, NamedTuple

from keywise.attention.arrays import Array

INPUTS = ("query", "key", "value", "bias", "sinks")
"""The arguments of attention that have a gradient."""


class StatsGradients(NamedTuple):
    """Gradients of a loss with respect to attention statistics; None for one that the loss does not use.

    Attributes
    ----------
    lse, entropy
        [B, Hq, R] for the R queries with statistics.
    key_mass
        [B, Hq, N].
    segment_mass
        [B, Hq, R, S].

    Examples
    --------
    >>> StatsGradients().entropy is None
    True
    """

    lse: Any = None
    entropy: Any = None
    key_mass: Any = None
    segment_mass: Any = None


class Gradients(NamedTuple):
    """Gradients of a loss with respect to the arguments of attention; None for one that was not asked for.

    Attributes
    ----------
    query, key, value
        In the query's library and dtype, with the arguments' shapes.
    bias, sinks
        In the argument's shape, library and dtype; in the query's library where a list was passed.
    """

    query: Any = None
    key: Any = None
    value: Any = None
    bias: Any = None
    sinks: Any = None


class BackwardCall(NamedTuple):
    """Checked arguments of a backward pass beside those of the forward pass.

    Attributes
    ----------
    output_gradient, output
        [B, Hq, Q, Dv] as the kernels read them, or NumPy in float64 for the definition.
    lse, lse_rest
        [B, Hq, Q]; the rest is what rounding took from the LSE, None where it is not known.
    entropy, segment_mass
        Statistics that the forward pass computed; None unless their gradient needs them.
    stats_gradients
        Gradients of statistics.
    """

    output_gradient: Any
    output: Any
    lse: Array
    lse_rest: Array | None
    entropy: Array | None
    segment_mass: Array | None
    stats_gradients: StatsGradients
