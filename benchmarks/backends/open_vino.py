"""OpenVINO: its ScaledDotProductAttention, alone and fused with a key-value cache."""

# ruff: noqa: PLC0415  (openvino is slow to import, or absent: only calls need it)

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.backends.backend import (
    Backend,
    UnsupportedCaseError,
    keep_inputs,
    make_visible_mask,
    shorten_message,
)
from benchmarks.inputs import Inputs, to_numpy


def prepare_operator(inputs: Inputs, threads: int) -> Backend:
    """Prepare the operator on all keys and values.

    Its `causal` is aligned to the upper left: few queries after many keys, and windows, need a mask.
    """
    import openvino
    from openvino import opset13 as ops

    case, arrays = inputs.case, inputs.arrays
    parameters = [ops.parameter(array.shape, _get_element_type(inputs)) for array in arrays]
    query, key, value = (parameter.output(0) for parameter in parameters)
    mask = []
    if case.has_hidden_keys and not case.is_square_causal:
        mask = [ops.constant(to_numpy(make_visible_mask(inputs)))]
    attention = ops.scaled_dot_product_attention(
        query,
        _repeat_key_heads(ops, key, inputs),
        _repeat_key_heads(ops, value, inputs),
        *mask,
        causal=case.is_square_causal,
    )
    model = openvino.Model([ops.result(attention)], parameters, "attention")
    return _compile(inputs, threads, model, dict(enumerate(arrays)))


def prepare_cached_operator(inputs: Inputs, threads: int) -> Backend:
    """Prepare the operator fused with a cache, as in models that OpenVINO exports for generation.

    Every call extends the cache; it is restored before every sample.
    """
    import openvino
    from openvino import opset6
    from openvino import opset13 as ops
    from openvino.op.util import Variable, VariableInfo

    case = inputs.case
    element_type = _get_element_type(inputs)
    if not case.causal or case.queries == case.keys:
        raise UnsupportedCaseError("its cache needs causal queries after a past")
    if case.window is not None:
        raise UnsupportedCaseError("its cache has no windows")
    query, key, value = inputs.arrays
    parameters = [
        ops.parameter(openvino.PartialShape([*array.shape[:2], -1, array.shape[3]]), element_type)
        for array in inputs.arrays
    ]
    beams = ops.parameter([case.batch], openvino.Type.i32)
    cached = []
    assignments = []
    for name, new in zip(("key", "value"), parameters[1:], strict=True):
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = new.get_partial_shape(), element_type, name
        variable = Variable(info)
        empty = ops.constant(np.zeros((case.batch, case.key_heads, 0, case.head_dim), np.float32))
        state = opset6.read_value(ops.convert(empty, element_type), variable)
        extended = ops.concat([ops.gather(state, beams, ops.constant(0)), new], 2)
        assignments.append(opset6.assign(extended, variable))
        cached.append(_repeat_key_heads(ops, extended.output(0), inputs))
    attention = ops.scaled_dot_product_attention(parameters[0], *cached, causal=case.queries > 1)
    model = openvino.Model([ops.result(attention)], assignments, [*parameters, beams], "attention")
    past_tokens = case.keys - case.queries
    past_key, new_key = map(np.ascontiguousarray, np.split(key, [past_tokens], axis=2))
    past_value, new_value = map(np.ascontiguousarray, np.split(value, [past_tokens], axis=2))
    arrays = {0: query, 1: new_key, 2: new_value, 3: np.arange(case.batch, dtype=np.int32)}
    return _compile(inputs, threads, model, arrays, states={"key": past_key, "value": past_value})


def _compile(
    inputs: Inputs,
    threads: int,
    model: Any,
    arrays: dict[int, NDArray[Any]],
    *,
    states: dict[str, NDArray[Any]] | None = None,
) -> Backend:
    """Compile a model, bind its inputs, and run it once."""
    import openvino

    element_type = _get_element_type(inputs)
    settings = {
        "INFERENCE_PRECISION_HINT": element_type,
        "KV_CACHE_PRECISION": element_type,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    # A tensor shares its array's memory without keeping it alive: these two dictionaries do.
    bound = {index: _make_tensor(array, element_type) for index, array in arrays.items()}
    state_tensors = {name: _make_tensor(array, element_type) for name, array in (states or {}).items()}
    try:
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        for index, (_, tensor) in bound.items():
            request.set_input_tensor(index, tensor)

        def reset() -> None:
            for state in request.query_state():
                state.state = state_tensors[state.name][1]

        reset()
        request.infer(share_outputs=True)
    except RuntimeError as error:
        raise UnsupportedCaseError(f"ScaledDotProductAttention: {shorten_message(error)}") from error
    reset()
    dtype = arrays[0].dtype
    return Backend(
        partial(_infer, request, bound),
        lambda _: request.get_output_tensor(0).data.view(dtype),
        reset if states else keep_inputs,
    )


def _infer(request: Any, _bound: object) -> None:
    request.infer(share_outputs=True)


def _make_tensor(array: NDArray[Any], element_type: Any) -> tuple[NDArray[Any], Any]:
    """Return an array and a tensor over its memory.

    bfloat16, for which NumPy has no type, is passed as its bits.
    """
    import openvino

    if array.dtype.kind == "i":
        return array, openvino.Tensor(array, shared_memory=True)
    bits = array.view(np.uint16) if array.itemsize == 2 else array
    return bits, openvino.Tensor(bits, array.shape, element_type)


def _get_element_type(inputs: Inputs) -> Any:
    import openvino

    types = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16, "float16": openvino.Type.f16}
    return types[inputs.case.dtype]


def _repeat_key_heads(ops: Any, heads: Any, inputs: Inputs) -> Any:
    """Repeat key heads for their groups, in the pattern that OpenVINO fuses."""
    case = inputs.case
    if not case.has_grouped_heads:
        return heads
    expanded = ops.unsqueeze(heads, ops.constant(2))
    shape = ops.shape_of(heads)
    before, after = (ops.gather(shape, ops.constant(axes), ops.constant(0)) for axes in ([0, 1], [2, 3]))
    group = ops.constant([case.query_heads // case.key_heads])
    repeated = ops.broadcast(expanded, ops.concat([before, group, after], 0), broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(repeated, ops.constant([0, case.query_heads, -1, case.head_dim]), True)
