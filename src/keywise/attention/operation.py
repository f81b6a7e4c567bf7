"""attend, read and partial: the operation as users call it."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.attention import kernels
from keywise.attention.arrays import empty, to_library
from keywise.attention.partial import Partial
from keywise.attention.problem import Chunks, make_problem
from keywise.attention.stats import AttentionStats
from keywise.attention.stats_request import StatsRequest

__all__ = ["Chunks", "StatsRequest", "attend", "attention_stats", "partial", "run"]


def attend(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
) -> Any:
    """Compute softmax(query . key * scale) . value exactly, in memory linear in the number of tokens.

    Parameters
    ----------
    query : [B, Hq, Q, D]
        NumPy array, torch CPU tensor or DLPack array; float32, float16 or bfloat16 (float64 on the reference target).
    key : [B, Hkv, N, D]
        Query head h uses key head h // (Hq / Hkv).
    value : [B, Hkv, N, Dv]
        Dv may differ from D.
    mask : Mask or bool array, optional
        Which keys a query may see; an array broadcasts to [B, Hq, Q, N], True = may attend.
    bias : array, optional
        Added to the scores; broadcasts to [B, Hq, Q, N]; float32 or the query's dtype.
    scale : float, optional
        Multiplies the scores; default 1 / sqrt(D).
    softcap : float, optional
        Scores become softcap * tanh(score / softcap), before bias and mask.
    sinks : [Hq], optional
        An extra score per head that takes weight and gives no value.

    Returns
    -------
    [B, Hq, Q, Dv]
        Of the query's kind and dtype; 0 where a query may see no key.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        Naming the argument, its value and what would work.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 5, 8)).astype(np.float32)
    >>> kw.attend(x, x, x, mask=kw.Mask(causal=True)).shape
    (1, 2, 5, 8)

    References
    ----------
    Vaswani et al., "Attention Is All You Need", 2017.
    """
    return run(query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks)


def attention_stats(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    top_k: int = 8,
    segment_bounds: Any = None,
    segment_ids: Any = None,
    query_weights: Any = None,
) -> AttentionStats:
    """Compute attention and, in the same pass, which keys mattered; memory stays linear in the number of tokens.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `attend`.
    top_k : int
        Number of heaviest keys to report per query.
    segment_bounds : int array [S+1], optional
        Increasing key positions; segment s holds the keys from ``segment_bounds[s]`` to ``segment_bounds[s + 1] - 1``.
    segment_ids : int array [N], optional
        The segment of every key, -1 for none. Give bounds or ids, not both.
    query_weights : array, optional
        Broadcasts to [B, Hq, Q]; the weight of each query row in `key_mass`, default 1.

    Returns
    -------
    Reading

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        Naming the argument, its value and what would work.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> key = np.eye(4, dtype=np.float32)[None, None] * 9
    >>> stats = kw.attention_stats(key[:, :, 2:3], key, key, top_k=1, segment_bounds=[0, 2, 4])
    >>> stats.top_keys.item(), stats.segment_mass.round(3).tolist()
    (2, [[[[0.0, 1.0]]]])
    """
    want = StatsRequest(
        top_k=top_k, segment_bounds=segment_bounds, segment_ids=segment_ids, query_weights=query_weights
    )
    result = run(query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, stats=want)
    assert isinstance(result, AttentionStats)
    return result


def partial(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    first_key: int = 0,
) -> Partial:
    """Compute attention over part of the keys, to be merged with the other parts.

    Parameters
    ----------
    query, key, value, bias, scale, softcap
        As in `attend`; key, value and bias cover this part only. Sinks enter when the merged partial gives its output.
    mask : Mask or bool array, optional
        Positions in a `Mask` are those of the whole: give `lengths` when keys follow this part. An array covers this
        part only.
    first_key : int
        Position of this part's first key in the whole.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.ones((1, 1, 4, 8), np.float32)
    >>> whole = kw.Mask(causal=True, lengths=[4])
    >>> parts = [kw.partial(x, x[:, :, a:b], x[:, :, a:b], mask=whole, first_key=a) for a, b in ((0, 3), (3, 4))]
    >>> kw.merge(*parts).total.tolist()
    [[[1.0, 2.0, 3.0, 4.0]]]
    """
    problem = make_problem(
        query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=None, first_key=first_key
    )
    return kernels.run_partial(problem)


def partial_with_stats(
    query: Any, key: Any, value: Any, *, mask: Any = None, scale: float | None = None, top_k: int = 8
) -> tuple[Partial, AttentionStats]:
    """Compute attention over part of the keys, and read this part in the same pass.

    Weights in the reading are shares of this part; `Partial.share_of` tells what the part is of the whole.

    Parameters
    ----------
    query, key, value, mask, scale
        As in `partial`, as NumPy arrays; key and value may come in `Pieces`.
    top_k
        Number of heaviest keys to name per query row, numbered from this part's first.

    Returns
    -------
    (Partial, Reading)
        The reading has neither output nor key mass.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.operation import partial_with_stats
    >>> key = np.eye(4, dtype=np.float32)[None, None] * 9
    >>> part, reading = partial_with_stats(key[:, :, 2:3], key, key, top_k=1)
    >>> part.values.shape, reading.top_keys.item()
    ((1, 1, 1, 4), 2)
    """
    problem = make_problem(
        query,
        key,
        value,
        mask=mask,
        bias=None,
        scale=scale,
        softcap=None,
        sinks=None,
        stats=StatsRequest(top_k, key_mass=False),
    )
    assert problem.stats is not None
    records = {name: np.empty(shape, dtype) for name, shape, dtype in problem.stats.arrays}
    part = kernels.run_partial(problem, records)
    return part, AttentionStats(None, **records)


def run(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    stats: StatsRequest | None = None,
    transposed_output: bool = False,
    first_key: int = 0,
) -> Any:
    """Run one problem: what `attend`, `read`, the cache and the plug-ins share.

    Key and value may come in `Pieces`; `first_key` is the position of the first key, as in `partial`. With `reading`
    the result is a `Reading` whose rows are those the `Want` names, else the output alone.
    `transposed_output` stores and returns the output as [B, Q, Hq, Dv].
    """
    if bias is None and softcap is None and sinks is None and not first_key:
        given = kernels.attend(
            query, key, value, mask=mask, scale=scale, transposed_output=transposed_output, stats=stats
        )
        if given is not None:
            return given if stats is None else AttentionStats(*given)
    problem = make_problem(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        first_key=first_key,
        stats=stats,
    )
    batch, query_heads, _, queries, _, _, value_dim = problem.shape
    like = problem.query.like
    rows = (queries, query_heads) if transposed_output else (query_heads, queries)
    output = empty((batch, *rows, value_dim), problem.dtype, like)
    wanted = () if problem.stats is None else problem.stats.arrays
    records = {name: empty(shape, dtype, like) for name, shape, dtype in wanted}
    kernels.run(problem, output.swapaxes(1, 2) if transposed_output else output, records)
    given = to_library(output, like)
    if stats is None:
        return given
    return AttentionStats(given, **{name: to_library(array, like) for name, array in records.items()})
