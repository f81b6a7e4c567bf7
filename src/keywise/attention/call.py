"""The arguments of one attention call, checked in one place.

The records are named tuples, because creating frozen dataclasses takes noticeable time in a small call.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

from keywise.attention.arrays import FLOATS, Array, HostArray, as_element_aligned, as_host_array
from keywise.attention.checks import broadcast, check_sinks
from keywise.attention.dropout import Dropout, check_dropout
from keywise.attention.native import Inputs, Refusal, read_inputs
from keywise.attention.stats_request import ResolvedStats, StatsRequest, resolve_stats
from keywise.attention.visibility import ALL_KEYS, ResolvedMask, resolve_mask
from keywise.errors import DtypeError, KeywiseError, OptionError, ShapeError
from keywise.util.checks import MAX_FLOAT, MAX_TOKENS, check_float, check_int


@final
class Chunks(tuple[Any, ...]):
    """A key or value argument in several arrays, one after the other along the tokens.

    Kernels read them in place.
    """


class AttentionCall(NamedTuple):
    """Checked arguments of one call.

    Attributes
    ----------
    inputs
        Query, keys and values.
    mask
        Which keys a query sees.
    bias
        [B, Hq, Q, N], broadcast by zero strides.
    sinks
        [Hq] float64.
    scale
        None for 1 / sqrt(head_dim).
    softcap
        None for no cap.
    first_key
        Position of the first key.
    stats
        Which statistics to compute.
    dropout
        Which weights are dropped; None for none.
    """

    inputs: Inputs
    mask: ResolvedMask
    bias: HostArray | None
    sinks: Array | None
    scale: float | None
    softcap: float | None
    first_key: int
    stats: ResolvedStats | None
    dropout: Dropout | None


def make_call(
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
) -> AttentionCall:
    """Check the arguments of attention and return them as one record.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `attend`; key and value may be `Chunks`.
    first_key
        Position of the first key, as in `partial`.
    stats
        Which statistics to compute.
    dropout
        Which weights to drop.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument is refused; the error names it.
    """
    # By type where it is enough, because isinstance takes noticeable time in a small call.
    if type(key) is Chunks or type(value) is Chunks:
        inputs = _read_chunks(query, key, value)
    else:
        inputs = read_inputs(query, (key,), (value,))
    if type(inputs) is not Inputs and isinstance(inputs, Refusal):
        raise _make_error(inputs, query, key, value)
    # By identity: a comparison with an array would run its code.
    if first_key is not _NO_OFFSET:
        first_key = check_int("first_key", first_key, minimum=0)
    # The usual scale needs no further check; a small call would notice one.
    if scale is not None and not (type(scale) is float and 0.0 <= scale <= MAX_FLOAT):
        scale = check_float("scale", scale)
    fields = (
        inputs,
        ALL_KEYS if mask is None else resolve_mask(mask, inputs, first_key),
        None if bias is None else _check_bias(bias, inputs),
        None if sinks is None else check_sinks(sinks, inputs.query_heads),
        scale,
        None if softcap is None else _check_softcap(softcap, scale, inputs.head_dim),
        first_key,
        None if stats is None else resolve_stats(stats, inputs),
        None if dropout is None else check_dropout(dropout, inputs),
    )
    # Twice as fast as the constructor, a noticeable saving in a small call.
    return tuple.__new__(AttentionCall, fields)


def _read_chunks(query: Any, key: Any, value: Any) -> Inputs | Refusal:
    keys = key if isinstance(key, Chunks) else (key,)
    values = value if isinstance(value, Chunks) else (value,)
    if type(keys) is not type(values) or len(keys) != len(values) or not keys:
        raise ShapeError("value", f"must be in as many chunks as key, one or more, got {len(values)} and {len(keys)}")
    return read_inputs(query, keys, values)


def _check_bias(bias: Any, inputs: Inputs) -> HostArray:
    array = as_host_array("bias", bias)
    if array.dtype not in {"float32", inputs.dtype}:
        raise DtypeError(
            "bias",
            f"must have dtype float32 or the query's {inputs.dtype}, got {array.dtype}",
            remedy="pass a boolean mask as mask=",
        )
    return array._replace(data=broadcast("bias", as_element_aligned(array.data), inputs.scores))


def _check_softcap(value: Any, scale: float | None, head_dim: int) -> float:
    softcap = check_float("softcap", value)
    if softcap < 1 / MAX_FLOAT:
        raise OptionError("softcap", f"must be {1 / MAX_FLOAT:g} or more", got=softcap, remedy="use None for no cap")
    if scale is None:
        scale = head_dim**-0.5
    if abs(scale) / softcap > MAX_FLOAT:
        raise OptionError(
            "softcap",
            f"must be {abs(scale) / MAX_FLOAT:g} or more for scale={scale}",
            got=softcap,
            remedy="use None for no cap",
        )
    return softcap


_NO_OFFSET = 0

_FLOAT_NAMES = f"{', '.join(FLOATS[:-1])} or {FLOATS[-1]}"

_MESSAGES: dict[str, tuple[type[KeywiseError], str]] = {
    "float": (DtypeError, f"must have dtype {_FLOAT_NAMES}, got {{dtype}}"),
    "axes": (ShapeError, "must have 4 axes [batch, heads, tokens, head_dim], got shape {shape}"),
    "head_dim": (ShapeError, "must have a head_dim of 1 or more, got shape {shape}"),
    "tokens": (ShapeError, f"must have at most {MAX_TOKENS} tokens, got shape {{shape}}"),
    "tokens of all chunks": (ShapeError, f"must have at most {MAX_TOKENS} tokens in all chunks"),
    "size": (ShapeError, "must have a size in bytes that fits 64 bits, got shape {shape}"),
    "strides": (ShapeError, "must have strides that reach no further than 64 bits, got shape {shape}"),
    "output size": (
        ShapeError,
        "must have an output whose size fits 64 bits, got shape {shape}, query {query.shape}",
    ),
    "query dtype": (DtypeError, "must have the query's dtype {query.dtype}, got {dtype}"),
    "query batch": (ShapeError, "must have the query's batch size {query.batch}, got shape {shape}"),
    "query head_dim": (ShapeError, "must have the query's head_dim {query.head_dim}, got shape {shape}"),
    "key dtype": (DtypeError, "must have the key's dtype {key.dtype}, got {dtype}"),
    "key tokens": (ShapeError, "must have the key's batch, heads and tokens, got shape {shape} and key {key.shape}"),
    "key heads": (ShapeError, "must have a multiple of the key's heads, got {heads} and key {key.heads}"),
    "chunk dtype": (DtypeError, "must have the first chunk's dtype {first.dtype}, got {dtype}"),
    "chunk shape": (ShapeError, "must have the heads and head_dim of the first chunk {first.shape}, got shape {shape}"),
}
"""Error type and message of each rule of the native module; the fields are those of `_ArrayDescription`."""


class _ArrayDescription:
    """Dtype and sizes of an array, for an error message."""

    def __init__(self, name: str, value: Any) -> None:
        try:
            array = as_host_array(name, value)
        except ValueError:  # NumPy has no arrays of more than 64 bits
            self.dtype, self.shape = str(value.dtype), list(value.shape)
            return
        self.dtype = array.dtype if array.scale is None else "int8 with scales"
        self.shape = list(array.data.shape)
        if len(self.shape) == 4:
            self.batch, self.heads, _, self.head_dim = self.shape


def _make_error(refusal: Refusal, query: Any, key: Any, value: Any) -> KeywiseError:
    """Return the error for a refusal of the native module."""
    chunked = isinstance(key, Chunks)
    keys, values = (key, value) if chunked else ((key,), (value,))
    arguments = {"query": query, "key": keys[refusal.chunk], "value": values[refusal.chunk]}
    descriptions = {name: _ArrayDescription(name, argument) for name, argument in arguments.items()}
    first_arguments = {"query": query, "key": keys[0], "value": values[0]}
    first = _ArrayDescription(refusal.argument, first_arguments[refusal.argument])
    subject = refusal.argument
    if chunked and subject != "query":
        subject = f"{subject} chunk {refusal.chunk}"
    error_type, template = _MESSAGES[refusal.rule]
    fields = vars(descriptions[refusal.argument])
    return error_type(subject, template.format(**fields, **descriptions, first=first))
