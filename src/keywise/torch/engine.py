"""The calls of the custom operators into keywise.attention, on tensors with memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from keywise.attention.backward import StatsGradients, attend_backward, attend_forward
from keywise.attention.dropout import Dropout
from keywise.attention.mask import Mask
from keywise.attention.stats_request import StatsRequest
from keywise.torch.settings import Numbers, SideTensors

_GRADIENT_NAMES = ("query", "key", "value", "bias", "sinks")


def compute(query: Any, key: Any, value: Any, tensors: SideTensors, numbers: Numbers) -> tuple[Any, ...]:
    """Compute attention and, if asked for, its statistics.

    Parameters
    ----------
    query, key, value : tensor
        As in `keywise.attend`.
    tensors, numbers
        Settings of the call.

    Returns
    -------
    tuple of tensor or None
        Output, LSE of all queries, what rounding took from it, entropy, top keys, top weights, top mass, key mass and
        segment mass; None for those that were not asked for.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used.
    """
    queries = query.shape[2]
    with torch.no_grad():
        result = attend_forward(
            query,
            key,
            value,
            **_make_options(query, tensors, numbers),
            stats=_make_request(tensors, numbers, queries),
            transposed_output=numbers.transposed_output,
        )
    stats = result.stats
    names = ("entropy", "top_keys", "top_weights", "top_mass", "key_mass", "segment_mass")
    return (result.output, result.lse, result.lse_rest, *(getattr(stats, name, None) for name in names))


def compute_gradients(
    gradients: Sequence[Any],
    inputs: Sequence[Any],
    results: Sequence[Any],
    tensors: SideTensors,
    numbers: Numbers,
    *,
    needs: Sequence[bool],
) -> tuple[Any, ...]:
    """Compute the gradients of attention and of its statistics.

    Parameters
    ----------
    gradients : sequence of tensor or None
        Of output, LSE, entropy, key mass and segment mass.
    inputs : sequence of tensor
        Query, key and value.
    results : sequence of tensor
        Output, LSE, its rest, entropy and segment mass of the forward pass.
    tensors, numbers
        Settings of the forward pass.
    needs : sequence of bool
        Whether the gradients of query, key, value, bias and sinks are needed.

    Returns
    -------
    tuple of tensor or None
        The five gradients; None for those that are not needed.
    """
    query, key, value = inputs
    output_gradient, lse_gradient, entropy_gradient, key_mass_gradient, segment_mass_gradient = gradients
    output, lse, lse_rest, entropy, segment_mass = results
    if output_gradient is None:
        output_gradient = torch.zeros_like(output)
    if numbers.transposed_output:
        output, output_gradient = output.transpose(1, 2), output_gradient.transpose(1, 2)
    request = _make_request(tensors, numbers, query.shape[2])
    if lse_gradient is not None and request is not None and request.queries is not None:
        first, last = request.queries
        lse_gradient = lse_gradient[:, :, first:last]
    names = [name for name, needed in zip(_GRADIENT_NAMES, needs, strict=True) if needed]
    with torch.no_grad():
        computed = attend_backward(
            output_gradient,
            query,
            key,
            value,
            output=output,
            lse=lse,
            lse_rest=lse_rest,
            **_make_options(query, tensors, numbers),
            stats=request,
            entropy=None if entropy_gradient is None else entropy,
            segment_mass=None if segment_mass_gradient is None else segment_mass,
            stats_gradients=StatsGradients(lse_gradient, entropy_gradient, key_mass_gradient, segment_mass_gradient),
            needs=names,
        )
    return tuple(getattr(computed, name) for name in _GRADIENT_NAMES)


def get_stats_dtype(dtype: Any) -> Any:
    """Return the dtype of LSE and statistics for a query's dtype.

    Parameters
    ----------
    dtype : torch.dtype
        The query's.

    Examples
    --------
    >>> get_stats_dtype(torch.bfloat16)
    torch.float32
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def _make_options(query: Any, tensors: SideTensors, numbers: Numbers) -> dict[str, Any]:
    """Return the keywords that the forward and the backward pass share."""
    dropout = None
    if tensors.seed is not None:
        dropout = Dropout(numbers.dropout_p, seed=int(tensors.seed) % 2**64)
    return {
        "mask": _make_mask(query, tensors, numbers),
        "bias": tensors.bias,
        "scale": numbers.scale,
        "softcap": numbers.softcap,
        "sinks": tensors.sinks,
        "dropout": dropout,
    }


def _make_mask(query: Any, tensors: SideTensors, numbers: Numbers) -> Mask | None:
    lengths = tensors.lengths
    if numbers.upper_left and numbers.causal:
        # Query i stands at key position i if the sequence ends after the last query.
        lengths = [query.shape[2]] * query.shape[0]
    left, right = (None if side == -1 else side for side in (numbers.left, numbers.right))
    has_window = left is not None or right is not None
    mask = Mask(
        causal=numbers.causal,
        window=(left, right) if has_window else None,
        lengths=lengths,
        starts=tensors.starts,
        keep_first=numbers.keep_first,
        documents=tensors.documents,
        allowed=tensors.allowed,
    )
    is_empty = not (numbers.causal or has_window) and all(
        tensor is None for tensor in (lengths, tensors.starts, tensors.documents, tensors.allowed)
    )
    return None if is_empty else mask


def _make_request(tensors: SideTensors, numbers: Numbers, queries: int) -> StatsRequest | None:
    if not numbers.has_stats:
        return None
    last_query = queries if numbers.last_query == -1 else numbers.last_query
    return StatsRequest(
        top_k=numbers.top_k,
        segment_bounds=tensors.segment_numbers if numbers.has_bounds else None,
        segment_ids=None if numbers.has_bounds else tensors.segment_numbers,
        query_weights=tensors.query_weights,
        key_mass=numbers.key_mass,
        queries=(numbers.first_query, last_query),
    )
