"""Everyone who takes part, each in its best mode."""

from keywise.bench.rivals import jax_xla, onnx_runtime, open_vino, ours, pytorch
from keywise.bench.rivals.way import CannotError, Rival, Way

__all__ = ["KEYWISE", "OURS", "READ", "RIVALS", "TORCH", "CannotError", "Rival", "Way"]

KEYWISE, READ, TORCH = "keywise", "keywise read", "torch"
OURS = (KEYWISE, READ)
RIVALS = {
    KEYWISE: Rival(("torch",), ours.attend),
    READ: Rival(("torch",), ours.read),
    TORCH: Rival(("torch",), pytorch.sdpa),
    "torch eager": Rival(("torch",), pytorch.eager),
    "ONNX Runtime MHA": Rival(("onnxruntime", "onnx"), onnx_runtime.multi_head),
    "ONNX Runtime GQA": Rival(("onnxruntime", "onnx"), onnx_runtime.group_query),
    "OpenVINO": Rival(("openvino",), open_vino.plain),
    "OpenVINO cache": Rival(("openvino",), open_vino.cached),
    "JAX": Rival(("jax",), jax_xla.attention),
}
"""Everyone who takes part, in the order of the tables."""
