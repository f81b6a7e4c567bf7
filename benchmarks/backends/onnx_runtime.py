"""ONNX Runtime: its two attention operators, each as a model of one node with all arrays bound beforehand."""

# ruff: noqa: PLC0415  (onnxruntime is slow to import, or absent: only calls need it)

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.backends.backend import Backend, CannotError, one_line
from benchmarks.inputs import Inputs

DOMAIN = "com.microsoft"


def multi_head(inputs: Inputs, threads: int) -> Backend:
    """MultiHeadAttention on arrays [batch, tokens, heads x head_dim]."""
    case = inputs.case
    if case.grouped:
        raise CannotError("MultiHeadAttention has no grouped heads")
    if case.window is not None:
        raise CannotError("MultiHeadAttention has no windows")
    if case.causal and 1 < case.queries < case.keys:
        raise CannotError("MultiHeadAttention counts causal positions from the first key")
    attributes = {"num_heads": case.query_heads, "unidirectional": int(case.causal and case.queries > 1)}
    arrays = dict(zip(("query", "key", "value"), map(_tokens_first, inputs.arrays), strict=True))
    return _bound(inputs, threads, "MultiHeadAttention", attributes, arrays)


def group_query(inputs: Inputs, threads: int) -> Backend:
    """GroupQueryAttention: past and present share one buffer, the new tokens' keys and values come in beside it."""
    case = inputs.case
    if not case.causal:
        raise CannotError("GroupQueryAttention is always causal")
    query, key, value = inputs.arrays
    new = slice(case.keys - case.queries, case.keys)
    arrays = {
        "query": _tokens_first(query),
        "key": _tokens_first(key[:, :, new]),
        "value": _tokens_first(value[:, :, new]),
        "past_key": key.copy(),
        "past_value": value.copy(),
        "seqlens_k": np.full(case.batch, case.keys - 1, np.int32),
        "total_sequence_length": np.array(case.keys, np.int32),
    }
    attributes = {"num_heads": case.query_heads, "kv_num_heads": case.key_heads}
    if case.window is not None:
        attributes["local_window_size"] = case.window
    present = {"present_key": "past_key", "present_value": "past_value"}
    return _bound(inputs, threads, "GroupQueryAttention", attributes, arrays, present)


def _bound(  # noqa: PLR0917
    inputs: Inputs,
    threads: int,
    operator: str,
    attributes: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    in_place: dict[str, str] | None = None,
) -> Backend:
    """Bind arrays to a model of one operator; `in_place` outputs are written into the buffer of an input."""
    import onnxruntime
    from onnx import helper
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NotImplemented, RuntimeException

    case = inputs.case
    result = np.empty_like(arrays["query"])
    outputs = {"output": result} | {name: arrays[source] for name, source in (in_place or {}).items()}

    def declared(named: dict[str, NDArray[Any]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in named.items()
        ]

    node = helper.make_node(operator, list(arrays), list(outputs), domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], operator, declared(arrays), declared(outputs))
    versions = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads may spin within a call, where that helps it, but not into another's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        values["output"] = onnxruntime.OrtValue.ortvalue_from_numpy(result)
        for name in outputs:
            binding.bind_ortvalue_output(name, values[(in_place or {}).get(name, name)])
        session.run_with_iobinding(binding)
    except NotImplemented as error:
        raise CannotError(f"{operator} has no kernel for {case.dtype}") from error
    except (Fail, InvalidArgument, RuntimeException) as error:
        raise CannotError(f"{operator} {case.dtype}: {one_line(error)}") from error
    heads_last = (case.batch, case.queries, case.query_heads, case.head_dim)
    return Backend(
        lambda: session.run_with_iobinding(binding),
        lambda _: values["output"].numpy().reshape(heads_last).swapaxes(1, 2),
    )


def _tokens_first(array: NDArray[Any]) -> NDArray[Any]:
    """Copy [batch, heads, tokens, head_dim] to [batch, tokens, heads x head_dim]."""
    batch, heads, tokens, dim = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(batch, tokens, heads * dim)
