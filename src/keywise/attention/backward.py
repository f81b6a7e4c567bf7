"""Attention for training: a forward pass that keeps what the gradients need, and the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from keywise.attention import native, reference_backward
from keywise.attention.arrays import Array, HostArray, as_host_array, as_readable_array, round_to, to_library
from keywise.attention.call import AttentionCall, make_call
from keywise.attention.checks import as_float_array
from keywise.attention.dropout import Dropout
from keywise.attention.gradients import INPUTS, BackwardCall, Gradients, StatsGradients
from keywise.attention.operation import compute_call, round_sinks
from keywise.attention.problem import resolve_problem
from keywise.attention.stats import AttentionStats
from keywise.attention.stats_request import StatsRequest
from keywise.attention.targets import REFERENCE, choose_target, get_num_threads
from keywise.errors import DtypeError, OptionError, ShapeError

__all__ = ["Dropout", "Forward", "Gradients", "StatsGradients", "StatsRequest", "attend_backward", "attend_forward"]


class Forward(NamedTuple):
    """Results of a forward pass that the backward pass needs.

    Attributes
    ----------
    output
        As `attend` returns it.
    lse
        [B, Hq, Q] log-sum-exp of the scores of every query in nats, sinks included; float32, float64 for float64.
    stats
        Statistics, if they were requested; float64 for float64.
    lse_rest
        [B, Hq, Q] what rounding took from `lse`: with both, the backward pass computes weights again as exactly as the
        forward pass did.
    """

    output: Any
    lse: Any
    stats: AttentionStats | None
    lse_rest: Any


def attend_forward(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout: Dropout | None = None,
    stats: StatsRequest | None = None,
    transposed_output: bool = False,
) -> Forward:
    """Compute attention and what its backward pass needs.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `attend`.
    dropout
        Which weights are dropped before they meet their values. Statistics are of the weights before dropout.
    stats
        Which statistics to compute, and for which queries.
    transposed_output
        Store and return the output as [B, Q, Hq, Dv].

    Returns
    -------
    Forward

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.backward import attend_forward
    >>> x = np.zeros((1, 1, 2, 8), np.float32)
    >>> attend_forward(x, x, x).lse.astype(float).round(4).tolist()
    [[[0.6931, 0.6931]]]
    """
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    call = make_call(query, key, value, **options, stats=stats, dropout=dropout)
    results = compute_call(call, transposed_output=transposed_output, for_training=True)
    lse, lse_rest = results.pop("query_lse"), results.pop("query_lse_rest")
    return Forward(results["output"], lse, None if stats is None else AttentionStats(**results), lse_rest)


def attend_backward(
    output_gradient: Any,
    query: Any,
    key: Any,
    value: Any,
    *,
    output: Any,
    lse: Any,
    lse_rest: Any = None,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout: Dropout | None = None,
    stats: StatsRequest | None = None,
    entropy: Any = None,
    segment_mass: Any = None,
    stats_gradients: StatsGradients | None = None,
    needs: Sequence[str] = ("query", "key", "value"),
) -> Gradients:
    """Compute the gradients of attention and of its statistics.

    Weights are computed again from the LSE, so memory is linear in the number of tokens, but for the gradient of a bias
    that has an element per query and key. Hidden keys get no gradient and add none, NaN included; a query that may see
    no key has gradient 0. Results have the same bits on any number of threads.

    Parameters
    ----------
    output_gradient : [B, Hq, Q, Dv]
        Gradient of the loss with respect to the output, in the query's dtype, with any strides.
    query, key, value, mask, bias, scale, softcap, sinks, dropout, stats
        As in `attend_forward`; `stats.top_k` does not matter.
    output, lse
        What `attend_forward` returned, the output as [B, Hq, Q, Dv] with any strides.
    lse_rest
        What `attend_forward` returned; without it, weights are as exact as `lse`.
    entropy, segment_mass
        Statistics of the forward pass; needed where `stats_gradients` has a gradient of them.
    stats_gradients
        Gradients of the loss with respect to statistics.
    needs
        Which gradients to compute: some of ``"query"``, ``"key"``, ``"value"``, ``"bias"`` and ``"sinks"``.

    Returns
    -------
    Gradients

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import numpy as np
    >>> from keywise.attention.backward import attend_backward, attend_forward
    >>> x = np.ones((1, 1, 2, 8), np.float32)
    >>> forward = attend_forward(x, x, x)
    >>> attend_backward(x, x, x, x, output=forward.output, lse=forward.lse).value.ravel()[0]
    np.float32(1.0)

    References
    ----------
    Dao et al., "FlashAttention", 2022, appendix B.
    """
    options = {"mask": mask, "bias": bias, "scale": scale, "softcap": softcap, "sinks": sinks}
    call = make_call(query, key, value, **options, stats=stats, dropout=dropout)
    wanted = _check_needs(needs, bias, sinks)
    if any(as_host_array("key", chunk).scale is not None for chunk in call.inputs.key_arrays):
        raise DtypeError("key", "must have a float dtype, got int8 with scales", remedy="dequantise keys and values")
    backward = _make_backward_call(
        call,
        output_gradient,
        output=output,
        lse=lse,
        lse_rest=lse_rest,
        entropy=entropy,
        segment_mass=segment_mass,
        gradients=stats_gradients or StatsGradients(),
    )
    target = choose_target(call.inputs.dtype)
    if target == REFERENCE:
        gradients = _evaluate(call, backward, bias, wanted)
    else:
        gradients = _compute(call, backward, bias, wanted, target)
    return _convert(call, gradients, bias, sinks)


def _check_needs(needs: Sequence[str], bias: Any, sinks: Any) -> frozenset[str]:
    wanted = frozenset(needs)
    if not wanted <= set(INPUTS):
        raise OptionError("needs", f"must be some of {', '.join(INPUTS)}", got=tuple(needs))
    for name, argument in (("bias", bias), ("sinks", sinks)):
        if name in wanted and argument is None:
            raise OptionError("needs", f"must not have {name!r} where no {name} was passed", got=tuple(needs))
    return wanted


def _make_backward_call(
    call: AttentionCall,
    output_gradient: Any,
    *,
    output: Any,
    lse: Any,
    lse_rest: Any,
    entropy: Any,
    segment_mass: Any,
    gradients: StatsGradients,
) -> BackwardCall:
    """Check the arguments of a backward pass against those of its forward pass."""
    batch, heads, queries, keys = call.inputs.scores
    value_dim = call.inputs.sizes[-1]
    per_query: tuple[int, ...] = (batch, heads, 0)
    segments = None
    if call.stats is not None:
        per_query = (batch, heads, call.stats.last_query - call.stats.first_query)
        segments = call.stats.segment_count
    shapes = {
        "lse": per_query,
        "entropy": per_query,
        "key_mass": (batch, heads, keys),
        "segment_mass": (*per_query, segments or 0),
    }
    checked: dict[str, Array | None] = {}
    for name, gradient in gradients._asdict().items():
        argument = f"stats_gradients.{name}"
        if gradient is not None and call.stats is None:
            raise OptionError(argument, "must be None without stats", remedy="pass the stats of the forward pass")
        if gradient is not None and name == "segment_mass" and segments is None:
            raise OptionError(argument, "must be None where stats has no segments")
        if gradient is not None and name == "key_mass" and call.stats is not None and not call.stats.key_mass:
            raise OptionError(argument, "must be None where stats has no key mass")
        checked[name] = None if gradient is None else _check_numbers(call, argument, gradient, shapes[name])
    saved: dict[str, Array | None] = {}
    for name, statistic in (("entropy", entropy), ("segment_mass", segment_mass)):
        if checked[name] is not None and statistic is None:
            raise OptionError(name, "must be passed with its gradient", remedy="pass the result of the forward pass")
        has_gradient = checked[name] is not None
        saved[name] = _check_numbers(call, name, statistic, shapes[name]) if has_gradient else None
    shape = (batch, heads, queries, value_dim)
    return BackwardCall(
        output_gradient=_check_rows(call, "output_gradient", output_gradient, shape),
        output=_check_rows(call, "output", output, shape),
        lse=_check_numbers(call, "lse", lse, (batch, heads, queries)),
        lse_rest=None if lse_rest is None else _check_numbers(call, "lse_rest", lse_rest, (batch, heads, queries)),
        entropy=saved["entropy"],
        segment_mass=saved["segment_mass"],
        stats_gradients=StatsGradients(**checked),
    )


def _check_rows(call: AttentionCall, name: str, value: Any, shape: tuple[int, ...]) -> HostArray:
    array = as_readable_array(name, value)
    if array.data.shape != shape:
        raise ShapeError(name, f"must have shape {list(shape)}, got {list(array.data.shape)}")
    if array.dtype != call.inputs.dtype:
        raise DtypeError(name, f"must have the query's dtype {call.inputs.dtype}, got {array.dtype}")
    return array


def _check_numbers(call: AttentionCall, name: str, value: Any, shape: tuple[int, ...]) -> Array:
    """Return statistics or their gradients, contiguous in float32, or in float64 for float64."""
    array = as_float_array(name, value)
    if array.data.shape != shape:
        raise ShapeError(name, f"must have shape {list(shape)}, got {list(array.data.shape)}")
    dtype = np.float64 if call.inputs.dtype == "float64" else np.float32
    return np.ascontiguousarray(array.floats(dtype))


def _find_bias_shape(bias: Any) -> tuple[int, ...]:
    return tuple(as_host_array("bias", bias).data.shape)


def _evaluate(call: AttentionCall, backward: BackwardCall, bias: Any, wanted: frozenset[str]) -> dict[str, Array]:
    """Return the wanted gradients by the definition, in float64."""
    floats = backward._replace(
        output_gradient=backward.output_gradient.floats(np.float64), output=backward.output.floats(np.float64)
    )
    with native.DefaultFloatMode():
        result = reference_backward.evaluate_backward(resolve_problem(call), floats)
    gradients = {name: getattr(result, name) for name in wanted}
    if "bias" in wanted:
        shape = _find_bias_shape(bias)
        sizes = (1,) * (4 - len(shape)) + shape
        summed = tuple(axis for axis in range(4) if sizes[axis] == 1)
        gradients["bias"] = gradients["bias"].sum(axis=summed, keepdims=True).reshape(shape)
    return gradients


def _convert(call: AttentionCall, gradients: dict[str, Any], bias: Any, sinks: Any) -> Gradients:
    """Return gradients in the library and dtype of their arguments.

    Kernels return those of query, key and value so, and those of bias and sinks in float32 and the query's library.
    """
    query = as_host_array("query", call.inputs.query_array)
    results: dict[str, Any] = {}
    for name, gradient in gradients.items():
        dtype, like, shape = query.dtype, query.like, None
        if name in {"bias", "sinks"}:
            argument = bias if name == "bias" else sinks
            dtype = "float64" if query.dtype == "float64" else "float32"
            if not isinstance(argument, (list, tuple)):
                array = as_host_array(name, argument)
                dtype, like, shape = array.dtype, array.like, array.data.shape
        array = as_host_array(name, gradient)
        if array.dtype == dtype and type(array.like) is type(like):
            results[name] = gradient if shape is None else gradient.reshape(shape)
            continue
        data = array.data if array.dtype == dtype else round_to(array.floats(np.float64), dtype)
        results[name] = to_library(np.ascontiguousarray(data if shape is None else data.reshape(shape)), like)
    return Gradients(**results)


def _compute(
    call: AttentionCall, backward: BackwardCall, bias: Any, wanted: frozenset[str], target: str
) -> dict[str, Any]:
    """Return the wanted gradients by a kernel."""
    inputs, mask, bias_scores, sinks, scale, softcap, _, stats, dropout = call
    gradients = backward.stats_gradients
    shape = _find_bias_shape(bias) if "bias" in wanted else None
    return native.attend_backward(
        inputs,
        mask.native,
        None if stats is None else stats.native,
        None if bias_scores is None else bias_scores.data,
        None if sinks is None else round_sinks(sinks),
        scale,
        softcap or 0.0,
        None if dropout is None else dropout.native,
        native.SavedResults(
            backward.output_gradient.data,
            backward.output.data,
            backward.lse,
            lse_rest=backward.lse_rest,
            entropy=backward.entropy,
            segment_mass=backward.segment_mass,
            lse_gradient=gradients.lse,
            entropy_gradient=gradients.entropy,
            key_mass_gradient=gradients.key_mass,
            segment_mass_gradient=gradients.segment_mass,
        ),
        sorted(wanted),
        None if shape is None else [1] * (4 - len(shape)) + list(shape),
        target,
        get_num_threads(),
    )
