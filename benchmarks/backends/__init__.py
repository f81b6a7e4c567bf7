"""Everyone who takes part, each in its best mode."""

from benchmarks.backends import jax_xla, keywise_backend, onnx_runtime, open_vino, pytorch
from benchmarks.backends.backend import Backend, Baseline, CannotError

__all__ = ["KEYWISE", "OURS", "READ", "RIVALS", "TORCH", "Backend", "Baseline", "CannotError"]

KEYWISE, READ, TORCH = "keywise", "keywise read", "torch"
OURS = (KEYWISE, READ)
RIVALS = {
    KEYWISE: Baseline(("torch",), keywise_backend.attend),
    READ: Baseline(("torch",), keywise_backend.attention_stats),
    TORCH: Baseline(("torch",), pytorch.sdpa),
    "torch eager": Baseline(("torch",), pytorch.eager),
    "ONNX Runtime MHA": Baseline(("onnxruntime", "onnx"), onnx_runtime.multi_head),
    "ONNX Runtime GQA": Baseline(("onnxruntime", "onnx"), onnx_runtime.group_query),
    "OpenVINO": Baseline(("openvino",), open_vino.plain),
    "OpenVINO cache": Baseline(("openvino",), open_vino.cached),
    "JAX": Baseline(("jax",), jax_xla.attention),
}
"""Everyone who takes part, in the order of the tables."""
