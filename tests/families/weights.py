"""Random weights under which scores are of order 1 and every optional part of the attention matters."""

from __future__ import annotations

import math
from typing import Any

import torch

# Query and key projections get larger weights, so that attention is far from uniform.
_SCORING = (
    "q_proj",
    "k_proj",
    "query",
    "key",
    "qkv",
    "c_attn",
    ".q.",
    ".k.",
    "q_lin",
    "k_lin",
    "wq",
    "wk",
    "to_q",
    "to_k",
)
_LOOKED_UP = ("relative", "rel_pos", "position_bias", "bias_table", "attention_bias", "sink", "rel_embed")


def draw_weights(model: Any, *, seed: int = 7, scoring: float = 2.0) -> None:
    """Draw the weights of a model again.

    Matrices are scaled by their inputs. Tables of biases by position, sinks and parameters that are zero at first are
    drawn too, and constant ones (norms) get noise. Other values, such as the decay rates of state-space layers, stay.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = {id(parameter): module for module in model.modules() for parameter in module.parameters(recurse=False)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point() and parameter.numel() and parameter.device.type == "cpu":
                _draw(name, parameter, kinds.get(id(parameter)), generator, scoring)


def _draw(name: str, parameter: Any, module: Any, generator: Any, scoring: float) -> None:
    def normal(scale: float) -> Any:
        return torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter.dtype) * scale

    kind = type(module).__name__
    if any(part in name for part in _LOOKED_UP):
        parameter.copy_(normal(1.0))
    elif parameter.ndim >= 2 and kind in {"Linear", "Conv1d", "Conv2d", "Conv3d", "Conv1D"}:
        fan_in = parameter.shape[0] if kind == "Conv1D" else parameter[0].numel()
        gain = scoring if any(part in name for part in _SCORING) else 1.0
        parameter.copy_(normal(gain / math.sqrt(fan_in)))
    elif kind == "Embedding" or "Embedding" in kind:
        parameter.copy_(normal(0.5))
    elif parameter.ndim < 2 or _is_constant(parameter):
        if _is_constant(parameter):
            # A gate of zero would hide what it gates.
            value = float(parameter.flatten()[0])
            parameter.copy_(value + normal(0.3 if value == 0 else 0.1 * abs(value)))
    elif parameter.ndim >= 3 or float(parameter.std()) < 0.1:
        parameter.copy_(normal(1.0 / math.sqrt(min(parameter.shape[-2:]))))


def _is_constant(parameter: Any) -> bool:
    return bool((parameter == parameter.flatten()[0]).all())
