"""Weights and scores of chosen queries and keys, exact under the softmax over all keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from keywise.attention.arrays import to_library
from keywise.attention.call import make_call
from keywise.attention.operation import compute_call
from keywise.attention.problem import resolve_problem
from keywise.attention.reference import compute_raw_scores, compute_scores, compute_weights
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, OptionError


@dataclass(frozen=True, eq=False)
class WeightsBlock:
    """Weights and scores of a block of queries and keys.

    Arrays are float32, in the query's library.

    Attributes
    ----------
    queries, keys : (int, int)
        The first query and key of the block, and those after the last.
    weights : [B, Hq, q, k]
        Weights of the softmax over all keys and sinks; 0 for hidden keys.
    scores : [B, Hq, q, k]
        After softcap and bias; -inf for hidden keys.
    raw_scores : [B, Hq, q, k]
        query · key x scale, before softcap, bias and mask.
    lse : [B, Hq, q]
        Log-sum-exp of all scores of each query in nats, sinks included.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> key = np.eye(4, dtype=np.float32)[None, None] * 9
    >>> kw.attention_weights(key, key, queries=slice(2, 3)).queries
    (2, 3)
    """

    queries: tuple[int, int]
    keys: tuple[int, int]
    weights: Any
    scores: Any
    raw_scores: Any
    lse: Any


def attention_weights(
    query: Any,
    key: Any,
    *,
    queries: slice | None = None,
    keys: slice | None = None,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
) -> WeightsBlock:
    """Compute the weights of chosen queries on chosen keys.

    One pass over all keys gives the log-sum-exp of each query, and the scores of the block alone are computed again.
    Memory is that of the block, of query and key in float64, and a byte per chosen query and key of the whole row.

    Parameters
    ----------
    query, key, mask, bias, scale, softcap, sinks
        As in `attend`.
    queries, keys : slice, optional
        The block, without a step; default all.

    Returns
    -------
    WeightsBlock

    Raises
    ------
    DtypeError
        `queries` or `keys` is not a slice of integers.
    OptionError
        A slice has a step or is empty.
    ShapeError, DtypeError, OptionError, TargetError
        Another argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> key = np.eye(4, dtype=np.float32)[None, None] * 9
    >>> block = kw.attention_weights(key, key, queries=slice(2, 4), keys=slice(1, 3))
    >>> block.weights.round(3).tolist()
    [[[[0.0, 1.0], [0.0, 0.0]]]]
    """
    # The pass needs no values: the first column costs least. An array of another shape is refused below, by its name.
    value = key[..., :1] if len(getattr(key, "shape", ())) == 4 else key
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    call = make_call(query, key, value, **options)
    query_range = _resolve_range("queries", queries, call.inputs.sizes[3])
    key_range = _resolve_range("keys", keys, call.inputs.sizes[4])
    stats = StatsRequest(top_k=0, key_mass=False, queries=query_range)
    lse = compute_call(make_call(query, key, value, **options, stats=stats))["lse"]
    problem = resolve_problem(call)
    block = slice(*query_range), slice(*key_range)
    scores = compute_scores(problem, *block)
    arrays = {
        "weights": compute_weights(scores, np.asarray(lse, np.float64)),
        "scores": scores,
        "raw_scores": compute_raw_scores(problem, *block),
    }
    converted = {name: to_library(array.astype(np.float32), problem.query.like) for name, array in arrays.items()}
    return WeightsBlock(query_range, key_range, **converted, lse=lse)


def _resolve_range(name: str, value: slice | None, size: int) -> tuple[int, int]:
    if value is None:
        return 0, size
    if not isinstance(value, slice):
        raise DtypeError(name, "must be a slice, such as slice(0, 64)", got=value)
    try:
        first, last, step = value.indices(size)
    except TypeError as error:
        raise DtypeError(name, "must be a slice of integers", got=value) from error
    if step != 1 or first >= last:
        raise OptionError(name, f"must be a slice without step that holds some of the {size}", got=value)
    return first, last
