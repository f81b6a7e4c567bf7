"""torch: its fused attention, and eager attention that keeps the weights."""

# ruff: noqa: PLC0415  (torch is slow to import, or absent: only calls need it)

from __future__ import annotations

from typing import Any

from benchmarks.backends.backend import Backend, make_visible_mask, refuse_large_weights
from benchmarks.inputs import Inputs, to_numpy


def prepare_sdpa(inputs: Inputs, _threads: int) -> Backend:
    """Prepare `scaled_dot_product_attention`.

    Its `is_causal` is aligned to the upper left: few queries after many keys, and windows, need a mask.
    """
    from torch.nn.functional import scaled_dot_product_attention

    case = inputs.case
    options: dict[str, Any] = {"enable_gqa": case.has_grouped_heads}
    if case.is_square_causal:
        options["is_causal"] = True
    elif case.has_hidden_keys:
        options["attn_mask"] = make_visible_mask(inputs)
    return Backend(lambda: scaled_dot_product_attention(inputs.query, inputs.key, inputs.value, **options))


def prepare_eager(inputs: Inputs, _threads: int) -> Backend:
    """Prepare eager attention as models compute it to return their weights."""
    import torch

    refuse_large_weights(inputs)
    case = inputs.case
    scale = case.head_dim**-0.5
    heads_per_key_head = case.query_heads // case.key_heads
    bias = None
    if case.has_hidden_keys:
        bias = torch.zeros(case.queries, case.keys, dtype=inputs.query.dtype)
        bias.masked_fill_(~make_visible_mask(inputs), -torch.inf)

    def call() -> Any:
        key, value = inputs.key, inputs.value
        if heads_per_key_head > 1:
            key = key.repeat_interleave(heads_per_key_head, dim=1)
            value = value.repeat_interleave(heads_per_key_head, dim=1)
        scores = inputs.query @ key.transpose(2, 3) * scale
        if bias is not None:
            scores = scores + bias
        weights = scores.softmax(-1, dtype=torch.float32).to(inputs.query.dtype)
        return weights @ value, weights

    return Backend(call, lambda result: to_numpy(result[0]))
