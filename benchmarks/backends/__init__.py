"""The implementations that are compared, each in its fastest mode."""

from benchmarks.backends import jax_xla, keywise_backend, onnx_runtime, open_vino, pytorch
from benchmarks.backends.backend import Backend, Baseline, UnsupportedCaseError

__all__ = [
    "BACKENDS",
    "BASELINES",
    "KEYWISE",
    "KEYWISE_BACKENDS",
    "KEYWISE_STATISTICS",
    "TORCH",
    "Backend",
    "Baseline",
    "UnsupportedCaseError",
]

KEYWISE, KEYWISE_STATISTICS = "keywise", "keywise with statistics"
TORCH = "torch"
KEYWISE_BACKENDS = {
    KEYWISE: Baseline(("torch",), keywise_backend.prepare_attend),
    KEYWISE_STATISTICS: Baseline(("torch",), keywise_backend.prepare_attention_stats),
}
"""keywise itself, without and with statistics."""

BASELINES = {
    TORCH: Baseline(("torch",), pytorch.prepare_sdpa),
    "torch eager": Baseline(("torch",), pytorch.prepare_eager),
    "ONNX Runtime MHA": Baseline(("onnxruntime", "onnx"), onnx_runtime.prepare_multi_head),
    "ONNX Runtime GQA": Baseline(("onnxruntime", "onnx"), onnx_runtime.prepare_group_query),
    "OpenVINO": Baseline(("openvino",), open_vino.prepare_operator),
    "OpenVINO cache": Baseline(("openvino",), open_vino.prepare_cached_operator),
    "JAX": Baseline(("jax",), jax_xla.prepare_attention),
}
"""The implementations that keywise is compared with, in the order of the tables."""

BACKENDS = KEYWISE_BACKENDS | BASELINES
"""Every implementation under its name in the tables."""
