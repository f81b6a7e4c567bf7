"""Attention and its backward pass as custom operators of torch: shapes for compilers, gradients and vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from keywise.attention.stats_request import MAX_PADDED_TOP_K
from keywise.errors import TargetError
from keywise.torch import batching, engine
from keywise.torch.settings import Numbers, SideTensors

_SIDE_TENSORS = (
    "Tensor? bias, Tensor? sinks, Tensor? allowed, Tensor? lengths, Tensor? starts, Tensor? documents, "
    "Tensor? query_weights, Tensor? segment_numbers, Tensor? seed"
)
_NUMBERS = (
    "bool causal, bool upper_left, SymInt left, SymInt right, SymInt keep_first, float? scale, float? softcap, "
    "float dropout_p, bool transposed_output, bool has_stats, SymInt top_k, bool key_mass, SymInt first_query, "
    "SymInt last_query, SymInt segment_count, bool has_bounds, bool has_stats_gradients"
)
_FORWARD_SCHEMA = (
    f"(Tensor query, Tensor key, Tensor value, {_SIDE_TENSORS}, {_NUMBERS}) -> "
    "(Tensor output, Tensor lse, Tensor lse_rest, Tensor entropy, Tensor top_keys, Tensor top_weights, "
    "Tensor top_mass, Tensor key_mass, Tensor segment_mass)"
)
_BACKWARD_SCHEMA = (
    "(Tensor? output_gradient, Tensor? lse_gradient, Tensor? entropy_gradient, Tensor? key_mass_gradient, "
    "Tensor? segment_mass_gradient, Tensor query, Tensor key, Tensor value, Tensor output, Tensor lse, "
    f"Tensor lse_rest, Tensor? entropy, Tensor? segment_mass, {_SIDE_TENSORS}, {_NUMBERS}, bool[] needs) -> "
    "(Tensor query_gradient, Tensor key_gradient, Tensor value_gradient, Tensor bias_gradient, Tensor sinks_gradient)"
)
_SIDE_COUNT = len(SideTensors._fields)
_INPUT_COUNT = 3 + _SIDE_COUNT + len(Numbers._fields)
_OUTPUT_NAMES = (
    "output",
    "lse",
    "lse_rest",
    "entropy",
    "top_keys",
    "top_weights",
    "top_mass",
    "key_mass",
    "segment_mass",
)
_GRADIENT_COUNT = 5
_FIRST_INPUT = 5
_BACKWARD_TENSORS = 13


def _split(settings: tuple[Any, ...]) -> tuple[SideTensors, Numbers]:
    return SideTensors(*settings[:_SIDE_COUNT]), Numbers(*settings[_SIDE_COUNT:])


# ---- Forward ----


@torch.library.custom_op("keywise::attention", mutates_args=(), schema=_FORWARD_SCHEMA)  # type: ignore[untyped-decorator]
def attention(query: Any, key: Any, value: Any, *settings: Any) -> tuple[Any, ...]:
    """Compute attention and, if asked for, its statistics.

    Parameters
    ----------
    query, key, value : tensor
        [B, Hq, Q, D], [B, Hkv, N, D] and [B, Hkv, N, Dv].
    *settings
        The fields of `SideTensors`, then those of `Numbers`.

    Returns
    -------
    tuple of tensor
        The output, the LSE of all queries, what rounding took from it, and the other statistics; those that were not
        asked for have no elements.
    """
    results = _compute(query, key, value, *settings)
    return tuple(
        _make_absent(query, name) if result is None else result
        for name, result in zip(_OUTPUT_NAMES, results, strict=True)
    )


def _make_absent(query: Any, name: str) -> Any:
    """Return the result of an operator for a statistic that was not asked for: a tensor without elements."""
    dtype = torch.int32 if name == "top_keys" else engine.get_stats_dtype(query.dtype)
    return query.new_empty(0, dtype=dtype)


def _compute(query: Any, key: Any, value: Any, *settings: Any) -> tuple[Any, ...]:
    return engine.compute(query, key, value, *_split(settings))


@attention.register_fake  # type: ignore[untyped-decorator]
def _make_fake_results(query: Any, key: Any, value: Any, *settings: Any) -> tuple[Any, ...]:
    tensors, numbers = _split(settings)
    batch, heads, queries, _ = query.shape
    keys, value_dim = key.shape[2], value.shape[3]
    shape = (batch, queries, heads, value_dim) if numbers.transposed_output else (batch, heads, queries, value_dim)
    exact = engine.get_stats_dtype(query.dtype)
    output = query.new_empty(shape)
    lse, lse_rest = (query.new_empty((batch, heads, queries), dtype=exact) for _ in range(2))
    if not numbers.has_stats:
        return (output, lse, lse_rest, *(_make_absent(query, name) for name in _OUTPUT_NAMES[3:]))
    last_query = queries if numbers.last_query == -1 else numbers.last_query
    rows = (batch, heads, last_query - numbers.first_query)
    top_k = numbers.top_k
    if top_k > MAX_PADDED_TOP_K:
        top_k = torch.sym_min(top_k, keys)
    has_segments = tensors.segment_numbers is not None
    return (
        output,
        lse,
        lse_rest,
        query.new_empty(rows, dtype=exact),
        query.new_empty((*rows, top_k), dtype=torch.int32),
        query.new_empty((*rows, top_k), dtype=exact),
        query.new_empty(rows, dtype=exact),
        query.new_empty((batch, heads, keys) if numbers.key_mass else (0,), dtype=exact),
        query.new_empty((*rows, numbers.segment_count) if has_segments else (0,), dtype=exact),
    )


# ---- Backward ----


@torch.library.custom_op("keywise::attention_backward", mutates_args=(), schema=_BACKWARD_SCHEMA)  # type: ignore[untyped-decorator]
def attention_backward(*arguments: Any) -> tuple[Any, ...]:
    """Compute the gradients of attention and of its statistics.

    Parameters
    ----------
    *arguments
        Gradients of output, LSE, entropy, key mass and segment mass (each may be None); query, key and value; output,
        LSE, its rest, entropy and segment mass of the forward pass; the settings of `attention`; which of the results
        are needed.

    Returns
    -------
    tuple of tensor
        Gradients of query, key, value, bias and sinks; those that are not needed have no elements.
    """
    query = arguments[_FIRST_INPUT]
    return tuple(query.new_empty(0) if result is None else result for result in _compute_gradients(*arguments))


def _compute_gradients(*arguments: Any) -> tuple[Any, ...]:
    gradients, inputs = arguments[:_FIRST_INPUT], arguments[_FIRST_INPUT : _FIRST_INPUT + 3]
    results = arguments[_FIRST_INPUT + 3 : _BACKWARD_TENSORS]
    return engine.compute_gradients(
        gradients, inputs, results, *_split(arguments[_BACKWARD_TENSORS:-1]), needs=arguments[-1]
    )


@attention_backward.register_fake  # type: ignore[untyped-decorator]
def _make_fake_gradients(*arguments: Any) -> tuple[Any, ...]:
    query, key, value = arguments[_FIRST_INPUT : _FIRST_INPUT + 3]
    tensors, _ = _split(arguments[_BACKWARD_TENSORS:-1])
    sources = (query, key, value, tensors.bias, tensors.sinks)
    return tuple(
        source.new_empty(source.shape) if needed else query.new_empty(0)
        for source, needed in zip(sources, arguments[-1], strict=True)
    )


# ---- Autograd ----


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    tensors, numbers = _split(inputs[3:])
    attended, lse, lse_rest, entropy, *top, key_mass, segment_mass = output
    if numbers.has_stats_gradients:
        absent = [each for each in (key_mass, segment_mass) if each is not None and each.dim() == 1]
        constants = [lse_rest, *top, *absent]
    else:
        constants = [each for each in (lse, lse_rest, entropy, *top, key_mass, segment_mass) if each is not None]
        # Under gradient checkpointing, a call that is repeated without a record of statistics must save the same.
        entropy, segment_mass = None, None
        tensors = tensors._replace(query_weights=None, segment_numbers=None)
        numbers = numbers._replace(has_stats=False)
    ctx.mark_non_differentiable(*constants)
    ctx.numbers = numbers
    # Saved tensors are checked: an in-place change of one before the backward pass is an error of torch.
    ctx.save_for_backward(*inputs[:3], *tensors, attended, lse, lse_rest, entropy, segment_mass)
    # Statistics that a loss does not use have no gradient, which saves their terms.
    ctx.set_materialize_grads(False)


def _propagate(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
    by_name = dict(zip(_OUTPUT_NAMES, gradients, strict=True))
    *inputs, output, lse, lse_rest, entropy, segment_mass = ctx.saved_tensors
    needed = ctx.needs_input_grad[:_GRADIENT_COUNT]
    no_gradients = (None,) * (_INPUT_COUNT - _GRADIENT_COUNT)
    wanted = tuple(by_name[name] for name in ("output", "lse", "entropy", "key_mass", "segment_mass"))
    if all(gradient is None for gradient in wanted):
        return (None,) * _INPUT_COUNT
    results = run_backward(
        *wanted, *inputs[:3], output, lse, lse_rest, entropy, segment_mass, *inputs[3:], *ctx.numbers, list(needed)
    )
    returned = (result if needs else None for result, needs in zip(results, needed, strict=True))
    return (*returned, *no_gradients)


def _refuse_second_derivative(_ctx: Any, *_: Any) -> tuple[Any, ...]:
    raise TargetError(
        "query",
        "must not be differentiated twice: keywise attention has first derivatives only",
        remedy="call backward() without create_graph=True, or use torch's attention for second derivatives",
    )


attention.register_autograd(_propagate, setup_context=_save_for_backward)
attention_backward.register_autograd(_refuse_second_derivative)


# ---- torch.func, and calls without a dispatcher ----


class _Attention(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    """The forward pass where the custom operator would be in the way.

    Transforms of torch.func cannot see the gradient of a custom operator, and its dispatch takes longer than a small
    call of attention.
    """

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return attention(*arguments) if _needs_operator(arguments[: 3 + _SIDE_COUNT]) else _compute(*arguments)

    setup_context = staticmethod(_save_for_backward)
    backward = staticmethod(_propagate)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return batching.batch_forward(run_attention, info.batch_size, in_dims, arguments)


class _AttentionBackward(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    """The backward pass under transforms of torch.func, and where it is recorded for a second derivative."""

    @staticmethod
    def forward(*arguments: Any) -> Any:
        return attention_backward(*arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    backward = staticmethod(_refuse_second_derivative)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Any, Any]:
        return batching.batch_backward(run_backward, info.batch_size, in_dims, arguments)


def _needs_operator(tensors: Sequence[Any]) -> bool:
    """Return whether a tracer, a mode or a tensor subclass has to see the call as an operator of torch."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(tensor is not None and type(tensor) not in _PLAIN_TENSORS for tensor in tensors)
        or torch.jit.is_tracing()
    )


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)


def run_attention(*arguments: Any) -> Any:
    """Compute attention by the operator, or without it where nobody has to see it.

    Parameters
    ----------
    *arguments
        Those of `attention`.
    """
    if torch._C._are_functorch_transforms_active():
        return _Attention.apply(*arguments)
    if _needs_operator(arguments[: 3 + _SIDE_COUNT]):
        return attention(*arguments)
    if torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in arguments[: 3 + _SIDE_COUNT]
    ):
        return _Attention.apply(*arguments)
    return _compute(*arguments)


def run_backward(*arguments: Any) -> Any:
    """Compute gradients by the operator, or without it where nobody has to see it.

    Parameters
    ----------
    *arguments
        Those of `attention_backward`.
    """
    if torch._C._are_functorch_transforms_active():
        return _AttentionBackward.apply(*arguments)
    # Gradients are enabled here if the backward pass itself is recorded.
    if _needs_operator(arguments[: _BACKWARD_TENSORS + _SIDE_COUNT]) or torch.is_grad_enabled():
        return attention_backward(*arguments)
    return _compute_gradients(*arguments)
