"""The public operations: attend, attention_stats and partial."""

from __future__ import annotations

from typing import Any

import numpy as np

from keywise.attention import native, reference
from keywise.attention.arrays import Array
from keywise.attention.call import AttentionCall, Chunks, make_call
from keywise.attention.partial import Partial
from keywise.attention.problem import resolve_problem
from keywise.attention.stats import AttentionStats
from keywise.attention.stats_request import StatsRequest
from keywise.attention.targets import REFERENCE, choose_target, get_num_threads

__all__ = [
    "Chunks",
    "StatsRequest",
    "attend",
    "attention_stats",
    "compute_call",
    "compute_partial_with_stats",
    "partial",
    "run",
]


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
    """Compute softmax(query · key * scale) · value exactly.

    Memory is linear in the number of tokens. Masked arrays, tensors without memory of their own, tensors with
    gradients or tangents, and calls inside traces, ``torch.vmap`` and ``torch.func`` are refused.

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
        An extra score per head that takes weight and adds no value.

    Returns
    -------
    [B, Hq, Q, Dv]
        In the query's library and dtype; 0 where a query may see no key.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

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
    call = make_call(query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks)
    return compute_call(call)["output"]


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
    """Compute attention and, in the same pass, which keys received it.

    Memory is linear in the number of tokens.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `attend`.
    top_k : int
        Number of heaviest keys to report per query; above 64, at most the number of keys.
    segment_bounds : int array [S+1], optional
        Increasing key positions; segment s has the keys from ``segment_bounds[s]`` to ``segment_bounds[s + 1] - 1``.
    segment_ids : int array [N], optional
        The segment of every key, -1 for none. Pass bounds or ids, not both.
    query_weights : array, optional
        Broadcasts to [B, Hq, Q]; the weight of each query in `key_mass`, default 1.

    Returns
    -------
    AttentionStats

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> key = np.eye(4, dtype=np.float32)[None, None] * 9
    >>> stats = kw.attention_stats(key[:, :, 2:3], key, key, top_k=1, segment_bounds=[0, 2, 4])
    >>> stats.top_keys.item(), stats.segment_mass.round(3).tolist()
    (2, [[[[0.0, 1.0]]]])
    """
    stats = StatsRequest(top_k, segment_bounds, segment_ids, query_weights)
    call = make_call(query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, stats=stats)
    return AttentionStats(**compute_call(call))


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
    """Compute attention over part of the keys, for merging with other parts.

    Parameters
    ----------
    query, key, value, bias, scale, softcap
        As in `attend`; key, value and bias cover this part only. Sinks enter when the output is computed from the
        merged partial.
    mask : Mask or bool array, optional
        Positions in a `Mask` count from the first key of all parts: pass `lengths` when keys follow this part. An
        array covers this part only.
    first_key : int
        Position of this part's first key among the keys of all parts.

    Returns
    -------
    Partial

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> x = np.ones((1, 1, 4, 8), np.float32)
    >>> mask = kw.Mask(causal=True, lengths=[4])
    >>> parts = [kw.partial(x, x[:, :, a:b], x[:, :, a:b], mask=mask, first_key=a) for a, b in ((0, 3), (3, 4))]
    >>> kw.merge(*parts).running_sum.tolist()
    [[[1.0, 2.0, 3.0, 4.0]]]

    References
    ----------
    Rabe and Staats, "Self-attention Does Not Need O(n^2) Memory", 2021.
    """
    call = make_call(query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, first_key=first_key)
    return Partial(**compute_call(call, partial=True))


def compute_partial_with_stats(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    top_k: int = 8,
) -> tuple[Partial, AttentionStats]:
    """Compute attention over part of the keys, and the statistics of this part.

    Weights are shares of this part; `Partial.share_of` returns the part's share of all parts.

    Parameters
    ----------
    query, key, value, mask, bias, scale
        As in `partial`; key and value may be `Chunks`.
    top_k
        Number of heaviest keys to report per query, numbered from the first key of this part.

    Returns
    -------
    (Partial, AttentionStats)
        The statistics are NumPy arrays, without output and key mass.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.operation import compute_partial_with_stats
    >>> key = np.eye(4, dtype=np.float32)[None, None] * 9
    >>> part, stats = compute_partial_with_stats(key[:, :, 2:3], key, key, top_k=1)
    >>> part.values.shape, stats.top_keys.item()
    ((1, 1, 1, 4), 2)
    """
    request = StatsRequest(top_k, key_mass=False)
    call = make_call(query, key, value, mask=mask, bias=bias, scale=scale, stats=request)
    results = compute_call(call, partial=True)
    part = Partial(*(results.pop(name) for name in ("running_max", "running_sum", "values")))
    return part, AttentionStats(None, **results)


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
    """Compute attention with the options that the cache and the plug-ins need.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `attend`; key and value may be `Chunks`.
    stats
        Which statistics to compute, and for which queries.
    transposed_output
        Store and return the output as [B, Q, Hq, Dv].
    first_key
        Position of the first key, as in `partial`.

    Returns
    -------
    array or AttentionStats
        The output; with `stats`, the output and the statistics.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.
    """
    call = make_call(
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
    results = compute_call(call, transposed_output=transposed_output)
    return results["output"] if stats is None else AttentionStats(**results)


def compute_call(
    call: AttentionCall, *, transposed_output: bool = False, partial: bool = False, for_training: bool = False
) -> dict[str, Any]:
    """Compute the results of a call by name.

    Parameters
    ----------
    call
        Checked arguments.
    transposed_output
        Store the output as [B, Q, Hq, Dv].
    partial
        Return the partial in place of the output, and only NumPy arrays.
    for_training
        Return the LSE of every query as ``query_lse`` too.

    Raises
    ------
    TargetError
        No target computes the call.
    """
    inputs, mask, bias, sinks, scale, softcap, first_key, stats, dropout = call
    target = choose_target(inputs.dtype)
    if target == REFERENCE:
        problem = resolve_problem(call)
        with native.DefaultFloatMode():
            result = reference.evaluate(problem)
            return result.convert(
                problem, transposed_output=transposed_output, partial=partial, for_training=for_training
            )
    return native.attend(
        inputs,
        mask.native,
        None if stats is None else stats.native,
        None if bias is None else bias.data,
        None if sinks is None else round_sinks(sinks),
        scale,
        softcap or 0.0,
        None if dropout is None else dropout.native,
        first_key,
        transposed_output,
        partial,
        for_training,
        target,
        get_num_threads(),
    )


def round_sinks(sinks: Array) -> Array:
    """Return sinks in float32.

    Parameters
    ----------
    sinks
        [Hq] float64.
    """
    # A score below float32's range takes no weight, as -inf does.
    with np.errstate(over="ignore"):
        return sinks.astype(np.float32)
