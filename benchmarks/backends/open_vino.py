"""OpenVINO: its ScaledDotProductAttention, alone and fused with a key-value cache."""

# ruff: noqa: PLC0415  (openvino is slow to import, or absent: only calls need it)

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.backends.backend import Backend, CannotError, nothing, one_line, visible
from benchmarks.inputs import Inputs, as_numpy


def plain(inputs: Inputs, threads: int) -> Backend:
    """Take the operator on whole arrays; its `causal` counts from the first key: few rows, and windows, get a mask."""
    import openvino
    from openvino import opset13 as ops

    case, arrays = inputs.case, inputs.arrays
    parameters = [ops.parameter(array.shape, _kind(inputs)) for array in arrays]
    query, key, value = (parameter.output(0) for parameter in parameters)
    key, value = (_repeated(ops, x, inputs) for x in (key, value))
    mask = [ops.constant(as_numpy(visible(inputs)))] if case.hides and not case.square_causal else []
    attention = ops.scaled_dot_product_attention(query, key, value, *mask, causal=case.square_causal)
    model = openvino.Model([ops.result(attention)], parameters, "attention")
    return _request(inputs, threads, model, dict(enumerate(arrays)))


def cached(inputs: Inputs, threads: int) -> Backend:
    """Take the operator fused with a cache that holds the past, as in models that OpenVINO exports for generation.

    Its past grows with every call and is put back before every sample.
    """
    import openvino
    from openvino import opset6
    from openvino import opset13 as ops
    from openvino.op.util import Variable, VariableInfo

    case, kind = inputs.case, _kind(inputs)
    if not case.causal or case.queries == case.keys:
        raise CannotError("its cache is for causal rows after a past")
    if case.window is not None:
        raise CannotError("its cache has no windows")
    query, key, value = inputs.arrays
    parameters = [ops.parameter(openvino.PartialShape([*x.shape[:2], -1, x.shape[3]]), kind) for x in inputs.arrays]
    beams = ops.parameter([case.batch], openvino.Type.i32)
    wholes, writes = [], []
    for name, new in zip(("key", "value"), parameters[1:], strict=True):
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = new.get_partial_shape(), kind, name
        variable = Variable(info)
        empty = ops.convert(ops.constant(np.zeros((case.batch, case.key_heads, 0, case.head_dim), np.float32)), kind)
        past = ops.gather(opset6.read_value(empty, variable), beams, ops.constant(0))
        whole = ops.concat([past, new], 2)
        writes.append(opset6.assign(whole, variable))
        wholes.append(_repeated(ops, whole.output(0), inputs))
    attention = ops.scaled_dot_product_attention(parameters[0], *wholes, causal=case.queries > 1)
    model = openvino.Model([ops.result(attention)], writes, [*parameters, beams], "attention")
    (past_key, new_key), (past_value, new_value) = (
        map(np.ascontiguousarray, np.split(x, [case.keys - case.queries], axis=2)) for x in (key, value)
    )
    arrays = {0: query, 1: new_key, 2: new_value, 3: np.arange(case.batch, dtype=np.int32)}
    return _request(inputs, threads, model, arrays, {"key": past_key, "value": past_value})


def _request(
    inputs: Inputs,
    threads: int,
    model: Any,
    arrays: dict[int, NDArray[Any]],
    pasts: dict[str, NDArray[Any]] | None = None,
) -> Backend:
    """Compile a model, bind its inputs, and run it once."""
    import openvino

    kind = _kind(inputs)
    settings = {
        "INFERENCE_PRECISION_HINT": kind,
        "KV_CACHE_PRECISION": kind,
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    # A tensor shares its array's memory without keeping it alive: `bound` does.
    bound = {index: _tensor(array, kind) for index, array in arrays.items()}
    states = {name: _tensor(array, kind) for name, array in (pasts or {}).items()}
    try:
        request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
        for index, (_, tensor) in bound.items():
            request.set_input_tensor(index, tensor)

        def reset() -> None:
            for state in request.query_state():
                state.state = states[state.name][1]

        reset()
        request.infer(share_outputs=True)
    except RuntimeError as error:
        raise CannotError(f"ScaledDotProductAttention: {one_line(error)}") from error
    reset()
    dtype = arrays[0].dtype
    return Backend(
        partial(_infer, request, bound),
        lambda _: request.get_output_tensor(0).data.view(dtype),
        reset if pasts else nothing,
    )


def _infer(request: Any, _bound: object) -> None:
    request.infer(share_outputs=True)


def _tensor(array: NDArray[Any], kind: Any) -> tuple[NDArray[Any], Any]:
    """Give an array beside a tensor over its memory; NumPy has no bfloat16 of its own, so that goes in as bits."""
    import openvino

    if array.dtype.kind == "i":
        return array, openvino.Tensor(array, shared_memory=True)
    bits = array.view(np.uint16) if array.itemsize == 2 else array
    return bits, openvino.Tensor(bits, array.shape, kind)


def _kind(inputs: Inputs) -> Any:
    import openvino

    types = {"float32": openvino.Type.f32, "bfloat16": openvino.Type.bf16, "float16": openvino.Type.f16}
    return types[inputs.case.dtype]


def _repeated(ops: Any, heads: Any, inputs: Inputs) -> Any:
    """Repeat key heads for their groups, in the form that OpenVINO recognises and takes out again where it can."""
    case = inputs.case
    if not case.grouped:
        return heads
    apart = ops.unsqueeze(heads, ops.constant(2))
    shape = ops.shape_of(heads)
    before, after = (ops.gather(shape, ops.constant(axes), ops.constant(0)) for axes in ([0, 1], [2, 3]))
    group = ops.constant([case.query_heads // case.key_heads])
    wide = ops.broadcast(apart, ops.concat([before, group, after], 0), broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(wide, ops.constant([0, case.query_heads, -1, case.head_dim]), True)
