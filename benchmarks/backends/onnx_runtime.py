"""ONNX Runtime: its two attention operators, each as a model of one node."""

# ruff: noqa: PLC0415  (onnxruntime is slow to import, or absent: only calls need it)

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.backends.backend import Backend, UnsupportedCaseError, shorten_message
from benchmarks.inputs import Inputs

DOMAIN = "com.microsoft"


def prepare_multi_head(inputs: Inputs, threads: int) -> Backend:
    """Prepare MultiHeadAttention on arrays [batch, tokens, heads x head_dim]."""
    case = inputs.case
    if case.has_grouped_heads:
        raise UnsupportedCaseError("MultiHeadAttention has no grouped heads")
    if case.window is not None:
        raise UnsupportedCaseError("MultiHeadAttention has no windows")
    if case.causal and 1 < case.queries < case.keys:
        raise UnsupportedCaseError("MultiHeadAttention aligns causal masks to the upper left")
    attributes = {"num_heads": case.query_heads, "unidirectional": int(case.causal and case.queries > 1)}
    arrays = dict(zip(("query", "key", "value"), map(_merge_heads, inputs.arrays), strict=True))
    return _bind(inputs, threads, "MultiHeadAttention", attributes, arrays)


def prepare_group_query(inputs: Inputs, threads: int) -> Backend:
    """Prepare GroupQueryAttention, whose past and present share one buffer."""
    case = inputs.case
    if not case.causal:
        raise UnsupportedCaseError("GroupQueryAttention is always causal")
    query, key, value = inputs.arrays
    new_tokens = slice(case.keys - case.queries, case.keys)
    arrays = {
        "query": _merge_heads(query),
        "key": _merge_heads(key[:, :, new_tokens]),
        "value": _merge_heads(value[:, :, new_tokens]),
        "past_key": key.copy(),
        "past_value": value.copy(),
        "seqlens_k": np.full(case.batch, case.keys - 1, np.int32),
        "total_sequence_length": np.array(case.keys, np.int32),
    }
    attributes = {"num_heads": case.query_heads, "kv_num_heads": case.key_heads}
    if case.window is not None:
        attributes["local_window_size"] = case.window
    shared = {"present_key": "past_key", "present_value": "past_value"}
    return _bind(inputs, threads, "GroupQueryAttention", attributes, arrays, shared=shared)


def _bind(
    inputs: Inputs,
    threads: int,
    operator: str,
    attributes: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
    *,
    shared: dict[str, str] | None = None,
) -> Backend:
    """Bind arrays to a model of one operator.

    Parameters
    ----------
    inputs, threads
        The case's inputs, and its number of threads.
    operator, attributes
        The node of the model.
    arrays
        Its inputs by name.
    shared
        Outputs that are written into the buffer of an input, by name.
    """
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, NotImplemented, RuntimeException

    case = inputs.case
    shared = shared or {}
    result = np.empty_like(arrays["query"])
    outputs = {"output": result} | {name: arrays[source] for name, source in shared.items()}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Its threads may spin within a call, but not while another backend is timed.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = _make_model(operator, attributes, arrays, outputs)
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        values["output"] = onnxruntime.OrtValue.ortvalue_from_numpy(result)
        for name in outputs:
            binding.bind_ortvalue_output(name, values[shared.get(name, name)])
        session.run_with_iobinding(binding)
    except NotImplemented as error:
        raise UnsupportedCaseError(f"{operator} has no kernel for {case.dtype}") from error
    except (Fail, InvalidArgument, RuntimeException) as error:
        raise UnsupportedCaseError(f"{operator} {case.dtype}: {shorten_message(error)}") from error
    output_shape = (case.batch, case.queries, case.query_heads, case.head_dim)
    return Backend(
        lambda: session.run_with_iobinding(binding),
        lambda _: values["output"].numpy().reshape(output_shape).swapaxes(1, 2),
    )


def _make_model(
    operator: str,
    attributes: dict[str, Any],
    inputs: dict[str, NDArray[Any]],
    outputs: dict[str, NDArray[Any]],
) -> bytes:
    from onnx import helper

    def declare(arrays: dict[str, NDArray[Any]]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), None)
            for name, array in arrays.items()
        ]

    node = helper.make_node(operator, list(inputs), list(outputs), domain=DOMAIN, **attributes)
    graph = helper.make_graph([node], operator, declare(inputs), declare(outputs))
    versions = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    serialized: bytes = helper.make_model(graph, opset_imports=versions, ir_version=10).SerializeToString()
    return serialized


def _merge_heads(array: NDArray[Any]) -> NDArray[Any]:
    """Copy [batch, heads, tokens, head_dim] to [batch, tokens, heads x head_dim]."""
    batch, heads, tokens, dim = array.shape
    return np.ascontiguousarray(array.swapaxes(1, 2)).reshape(batch, tokens, heads * dim)
