"""The ONNX operator `Attention` (opsets 23 to 25), computed by keywise."""

from __future__ import annotations

from typing import Any

import numpy as np

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import make_problem

INPUTS = ("Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen")
SUPPORTED_ATTRIBUTES = {
    "is_causal",
    "kv_num_heads",
    "left_window_size",
    "q_num_heads",
    "qk_matmul_output_mode",
    "right_window_size",
    "scale",
    "softcap",
    # keywise sums in float32 or better for every value of this attribute.
    "softmax_precision",
}


def run_attention(
    inputs: dict[str, np.ndarray], attributes: dict[str, Any], outputs: list[str]
) -> dict[str, np.ndarray]:
    """Compute the named outputs: Y, present_key, present_value, qk_matmul_output."""
    assert set(attributes) <= SUPPORTED_ATTRIBUTES, attributes
    query = _split_heads(inputs["Q"], attributes.get("q_num_heads"))
    key = _split_heads(inputs["K"], attributes.get("kv_num_heads"))
    value = _split_heads(inputs["V"], attributes.get("kv_num_heads"))
    past = 0
    if "past_key" in inputs:
        past = inputs["past_key"].shape[2]
        key = np.concatenate([inputs["past_key"], key], axis=2)
        value = np.concatenate([inputs["past_value"], value], axis=2)
    mask, bias = _convert_masks(inputs, attributes, query.shape[2], key.shape[2], past)
    options = {
        "mask": mask,
        "bias": bias,
        "scale": attributes.get("scale"),
        "softcap": attributes.get("softcap") or None,
        "sinks": None,
    }
    output = kw.attend(query, key, value, **options)
    if inputs["Q"].ndim == 3:
        output = output.swapaxes(1, 2).reshape(*inputs["Q"].shape[:2], -1)
    results = {"Y": output, "present_key": key, "present_value": value}
    if "qk_matmul_output" in outputs:
        scores = _compute_scores(query, key, options, attributes.get("qk_matmul_output_mode", 0))
        results["qk_matmul_output"] = scores.astype(query.dtype)
    return {name: results[name] for name in outputs}


def _split_heads(array: np.ndarray, heads: int | None) -> np.ndarray:
    """Return [batch, heads, tokens, head_dim] from that or from [batch, tokens, heads x head_dim]."""
    if array.ndim == 4:
        return array
    batch, tokens, _ = array.shape
    return array.reshape(batch, tokens, heads, -1).swapaxes(1, 2)


def _convert_masks(
    inputs: dict[str, np.ndarray], attributes: dict[str, Any], queries: int, keys: int, past: int
) -> tuple[kw.Mask, np.ndarray | None]:
    """Convert ONNX's masks to a mask and a bias."""
    allowed = bias = None
    onnx_mask = inputs.get("attn_mask")
    if onnx_mask is not None:
        # A mask may cover the first keys only; the others are hidden.
        short = [(0, 0)] * (onnx_mask.ndim - 1) + [(0, keys - onnx_mask.shape[-1])]
        if onnx_mask.dtype == bool:
            allowed = np.pad(onnx_mask, short)
        else:
            bias = np.pad(onnx_mask, short, constant_values=-np.inf)
    sides = [attributes.get(name, -1) for name in ("left_window_size", "right_window_size")]
    causal = bool(attributes.get("is_causal", 0))
    lengths = inputs.get("nonpad_kv_seqlen")
    if lengths is None and (causal or sides != [-1, -1]):
        # ONNX counts positions from the end of the past, keywise from the end of the keys.
        own_end = past + queries
        if own_end < keys:
            assert causal, "a window to the right over more keys than positions has no counterpart in lengths"
        lengths = np.full(inputs["Q"].shape[0], own_end)
    window = tuple(None if side < 0 else side for side in sides)
    return kw.Mask(
        causal=causal, window=None if window == (None, None) else window, lengths=lengths, allowed=allowed
    ), bias


def _compute_scores(query: np.ndarray, key: np.ndarray, options: dict[str, Any], mode: int) -> np.ndarray:
    """Return the requested scores or weights [batch, heads, queries, keys].

    Weights (mode 3) come from the target itself: values that are unit vectors copy each weight to the output. Scores
    before the softmax are never stored by a kernel: they come from the definition.
    """
    batch, heads, keys, _ = key.shape
    if mode == 3:
        unit = np.broadcast_to(np.eye(keys, dtype=query.dtype), (batch, heads, keys, keys))
        return kw.attend(query, key, unit, **options)
    if mode == 2:
        return reference.compute_scores(make_problem(query, key, key, **options))
    alone = {**options, "mask": None, "bias": None, "softcap": options["softcap"] if mode == 1 else None}
    return reference.compute_scores(make_problem(query, key, key, **alone))
