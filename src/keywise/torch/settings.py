"""Settings of one differentiable call, split into tensors and numbers as the custom operators take them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from keywise.attention.mask import Mask
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, OptionError, TargetError
from keywise.util.checks import check_float


class SideTensors(NamedTuple):
    """Optional tensors of a call besides query, key and value, in the order of the operators' schema.

    Attributes
    ----------
    bias
        Added to the scores; broadcasts to [B, Hq, Q, N].
    sinks
        [Hq], an extra score per head.
    allowed
        Boolean, True where a query may attend; broadcasts to [B, Hq, Q, N].
    lengths, starts
        [B] integers, as in `keywise.Mask`.
    documents
        [B, P] integers, as in `keywise.Mask`.
    query_weights
        Weight of each query in the key mass; broadcasts to [B, Hq, Q].
    segment_numbers
        Bounds [S+1] or ids [N] of the segments.
    seed
        int64 of one element, the seed of the dropout.
    """

    bias: Any = None
    sinks: Any = None
    allowed: Any = None
    lengths: Any = None
    starts: Any = None
    documents: Any = None
    query_weights: Any = None
    segment_numbers: Any = None
    seed: Any = None


class Numbers(NamedTuple):
    """Settings of a call that are not tensors, in the order of the operators' schema.

    Attributes
    ----------
    causal
        Whether a query sees no key after its own position.
    upper_left
        Whether query i stands at key position i, as in torch, and not at the lower right.
    left, right
        Keys visible before and after the query's own position, -1 for all.
    keep_first
        Keys that the window does not hide.
    scale, softcap
        As in `keywise.attend`.
    dropout_p
        Probability that a weight is set to 0.
    transposed_output
        Whether the output is [B, Q, Hq, Dv].
    has_stats
        Whether statistics are computed.
    top_k, key_mass
        As in `StatsRequest`.
    first_query, last_query
        The first query of the statistics and the one after the last; a last of -1 is the number of queries.
    segment_count
        Number of segments; -1 without segments.
    has_bounds
        Whether `SideTensors.segment_numbers` holds bounds and not ids.
    has_stats_gradients
        Whether a loss may use the statistics; if not, none of them is kept for the backward pass.
    """

    causal: bool = False
    upper_left: bool = False
    left: int = -1
    right: int = -1
    keep_first: int = 0
    scale: float | None = None
    softcap: float | None = None
    dropout_p: float = 0.0
    transposed_output: bool = False
    has_stats: bool = False
    top_k: int = 0
    key_mass: bool = False
    first_query: int = 0
    last_query: int = -1
    segment_count: int = -1
    has_bounds: bool = False
    has_stats_gradients: bool = True


def split_settings(
    *,
    mask: Any,
    upper_left: bool,
    bias: Any,
    scale: float | None,
    softcap: float | None,
    sinks: Any,
    dropout_p: float,
    transposed_output: bool,
    stats: StatsRequest | None,
    has_stats_gradients: bool,
) -> tuple[SideTensors, Numbers]:
    """Return the settings of a call as tensors and numbers.

    Parameters
    ----------
    mask : Mask or bool tensor or None
        The visible keys.
    upper_left : bool
        Whether positions are counted as in torch, from the first key.
    bias, scale, softcap, sinks, dropout_p, transposed_output
        As in `SideTensors` and `Numbers`.
    stats : StatsRequest or None
        The statistics to compute.
    has_stats_gradients : bool
        As in `Numbers`.

    Raises
    ------
    DtypeError, OptionError, TargetError
        A setting has the wrong type, is out of range or requires gradients that are not computed.
    """
    if mask is not None and not isinstance(mask, Mask):
        mask = Mask(allowed=mask)
    mask = Mask() if mask is None else mask
    left, right = (-1 if side is None else int(side) for side in mask.window or (None, None))
    segments, segment_count = (None, -1) if stats is None else _read_segments(stats)
    check_dropout(dropout_p)
    query_weights = None if stats is None else _as_tensor("query_weights", stats.query_weights)
    if query_weights is not None and query_weights.requires_grad:
        raise TargetError(
            "query_weights", "must not require gradients", remedy="pass query_weights.detach(), or weigh segment_mass"
        )
    tensors = SideTensors(
        bias=_as_tensor("bias", bias),
        sinks=_as_tensor("sinks", sinks),
        allowed=_as_tensor("mask.allowed", mask.allowed),
        lengths=_as_integer_tensor("mask.lengths", mask.lengths),
        starts=_as_integer_tensor("mask.starts", mask.starts),
        documents=_as_integer_tensor("mask.documents", mask.documents),
        query_weights=query_weights,
        segment_numbers=segments,
        seed=draw_seed() if dropout_p else None,
    )
    numbers = Numbers(
        causal=mask.causal,
        upper_left=upper_left,
        left=left,
        right=right,
        keep_first=int(mask.keep_first),
        scale=None if scale is None else float(scale),
        softcap=None if softcap is None else float(softcap),
        dropout_p=float(dropout_p),
        transposed_output=transposed_output,
        has_stats_gradients=has_stats_gradients,
    )
    if stats is None:
        return tensors, numbers
    first_query, last_query = stats.queries or (0, -1)
    return tensors, numbers._replace(
        has_stats=True,
        top_k=stats.top_k,
        key_mass=stats.key_mass,
        first_query=first_query,
        last_query=last_query,
        segment_count=segment_count,
        has_bounds=stats.segment_bounds is not None,
    )


def check_dropout(dropout_p: float) -> float:
    """Return a probability of dropout, or raise.

    Parameters
    ----------
    dropout_p : float
        The argument.

    Raises
    ------
    DtypeError, OptionError
        It is not a number from 0 to 1.

    Examples
    --------
    >>> check_dropout(0.1)
    0.1
    """
    probability = check_float("dropout_p", dropout_p)
    if not 0.0 <= probability <= 1.0:
        raise OptionError("dropout_p", "must be from 0 to 1", got=dropout_p)
    return probability


def draw_seed() -> Any:
    """Draw the seed of a dropout mask from torch's generator.

    Returns
    -------
    int64 tensor [1]
        `torch.manual_seed` determines it.
    """
    return torch.randint(-(2**63), 2**63 - 1, (1,), dtype=torch.int64)


def _read_segments(stats: StatsRequest) -> tuple[Any, int]:
    """Return the bounds or ids of segments as a tensor, and the number of segments."""
    if stats.segment_bounds is not None and stats.segment_ids is not None:
        raise OptionError("segment_bounds", "must not be combined with segment_ids", remedy="pass one of them")
    if stats.segment_bounds is not None:
        bounds = _as_integer_tensor("segment_bounds", stats.segment_bounds)
        return bounds, max(bounds.shape[0] - 1, 0) if bounds.dim() else 0
    if stats.segment_ids is None:
        return None, -1
    ids = _as_integer_tensor("segment_ids", stats.segment_ids)
    if not ids.numel():
        return ids, 0
    # The largest number of a list is known while a graph is traced.
    is_list = isinstance(stats.segment_ids, (list, tuple))
    return ids, int(max(stats.segment_ids) if is_list else ids.max()) + 1


def _as_integer_tensor(name: str, value: Any) -> Any:
    tensor = _as_tensor(name, value)
    if tensor is not None and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool):
        raise DtypeError(name, f"must have integers as elements, got dtype {tensor.dtype}")
    return tensor


def _as_tensor(name: str, value: Any) -> Any:
    if value is None or isinstance(value, torch.Tensor):
        return value
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DtypeError(name, f"must be a tensor or an array of numbers ({error})") from error
