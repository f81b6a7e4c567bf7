"""torch: its fused attention, and the plain one that keeps the weights."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

from typing import Any

from benchmarks.backends.backend import Backend, refuse_large_weights, visible
from benchmarks.inputs import Inputs, as_numpy


def sdpa(inputs: Inputs, _threads: int) -> Backend:
    """Take scaled_dot_product_attention; its `is_causal` counts from the first key: few rows and windows get a mask."""
    from torch.nn.functional import scaled_dot_product_attention

    case = inputs.case
    options: dict[str, Any] = {"enable_gqa": case.grouped}
    if case.square_causal:
        options["is_causal"] = True
    elif case.hides:
        options["attn_mask"] = visible(inputs)
    return Backend(lambda: scaled_dot_product_attention(inputs.query, inputs.key, inputs.value, **options))


def eager(inputs: Inputs, _threads: int) -> Backend:
    """Do what people do for the weights: scores, softmax in float32, weights times values; the weights are kept."""
    import torch

    refuse_large_weights(inputs)
    case = inputs.case
    scale, group = case.head_dim**-0.5, case.query_heads // case.key_heads
    hidden = None
    if case.hides:
        hidden = torch.zeros(case.queries, case.keys, dtype=inputs.query.dtype)
        hidden.masked_fill_(~visible(inputs), -torch.inf)

    def call() -> Any:
        key, value = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (inputs.key, inputs.value))
        scores = inputs.query @ key.transpose(2, 3) * scale
        if hidden is not None:
            scores = scores + hidden
        weights = scores.softmax(-1, dtype=torch.float32).to(inputs.query.dtype)
        return weights @ value, weights

    return Backend(call, lambda result: as_numpy(result[0]))
