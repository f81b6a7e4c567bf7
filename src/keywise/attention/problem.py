"""One attention call with every array as NumPy, for the definition."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from keywise.attention.arrays import Array, HostArray, as_readable_array
from keywise.attention.call import AttentionCall, make_call
from keywise.attention.dropout import Dropout
from keywise.attention.sizes import Sizes
from keywise.attention.stats_request import ResolvedStats, StatsRequest
from keywise.attention.visibility import Visibility


class Chunk(NamedTuple):
    """Keys and values of consecutive tokens, in memory of their own.

    Attributes
    ----------
    key, value
        [B, Hkv, T, D] and [B, Hkv, T, Dv].
    """

    key: HostArray
    value: HostArray

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.key.data.shape[2])


class Problem(NamedTuple):
    """Checked arguments of one call, with every default filled in.

    Attributes
    ----------
    query
        [B, Hq, Q, D].
    chunks
        Keys and values, one or more chunks in key order.
    shape
        (B, Hq, Hkv, Q, N, D, Dv).
    bias, sinks, scale, softcap, first_key, stats, dropout
        As in `AttentionCall`.
    visibility
        Which keys a query sees.
    """

    query: HostArray
    chunks: tuple[Chunk, ...]
    shape: Sizes
    bias: HostArray | None
    sinks: Array | None
    scale: float
    softcap: float | None
    visibility: Visibility
    first_key: int
    stats: ResolvedStats | None
    dropout: Dropout | None = None

    @property
    def dtype(self) -> str:
        """Element type of the query and the output."""
        return self.query.dtype

    def key_floats(self, dtype: npt.DTypeLike) -> Array:
        """Return the keys of all chunks as one array [B, Hkv, N, D].

        Parameters
        ----------
        dtype
            NumPy's float32 or float64.
        """
        return np.concatenate([chunk.key.floats(dtype) for chunk in self.chunks], axis=2)

    def value_floats(self, dtype: npt.DTypeLike) -> Array:
        """Return the values of all chunks as one array [B, Hkv, N, Dv].

        Parameters
        ----------
        dtype
            NumPy's float32 or float64.
        """
        return np.concatenate([chunk.value.floats(dtype) for chunk in self.chunks], axis=2)


def make_problem(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    first_key: int = 0,
    stats: StatsRequest | None = None,
    dropout: Dropout | None = None,
) -> Problem:
    """Check the arguments of attention and return them as a problem.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks, first_key, stats, dropout
        As in `make_call`, with the same errors.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.ones((1, 2, 5, 8), np.float32)
    >>> make_problem(x, x, x).shape.keys
    5
    """
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    call = make_call(query, key, value, **options, first_key=first_key, stats=stats, dropout=dropout)
    return resolve_problem(call)


def resolve_problem(call: AttentionCall) -> Problem:
    """Return a call with NumPy arrays and every default filled in.

    Parameters
    ----------
    call
        Checked arguments.
    """
    sizes = Sizes(*call.inputs.sizes)
    pairs = zip(call.inputs.key_arrays, call.inputs.value_arrays, strict=True)
    chunks = tuple(Chunk(as_readable_array("key", key), as_readable_array("value", value)) for key, value in pairs)
    return Problem(
        query=as_readable_array("query", call.inputs.query_array),
        # As in the kernels: chunks without tokens are left out, unless there is no other.
        chunks=tuple(chunk for chunk in chunks if chunk.tokens) or chunks[:1],
        shape=sizes,
        bias=call.bias,
        sinks=call.sinks,
        scale=sizes.head_dim**-0.5 if call.scale is None else call.scale,
        softcap=call.softcap,
        visibility=call.mask.make_visibility(sizes, call.first_key),
        first_key=call.first_key,
        stats=call.stats,
        dropout=call.dropout,
    )
