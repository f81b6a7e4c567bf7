"""Faults planted in functions and in arrays: plain attention with one fault each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

import keywise as kw
from keywise.diagnosis import Diagnosis, check, check_function

GENERATOR = np.random.default_rng(1)
QUERY, KEY, VALUE = (GENERATOR.normal(size=(1, 4, 32, 16)).astype(np.float32) for _ in range(3))


class PlantedFault(NamedTuple):
    """One fault: what it is, where it is planted, its code, and how to diagnose it."""

    fault: str
    place: str
    code: str
    diagnose: Callable[[], Diagnosis]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: Callable[[float, torch.Tensor], float] = lambda scale, _: scale,
    scaling: float | None = None,
    softcap: float | None = None,
    softcap_place: str = "before the mask",
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    axis: int = -1,
    hidden: float = -torch.inf,
    grouped: str = "interleaved",
) -> torch.Tensor:
    """Compute attention plainly; every keyword is a common place for a fault."""
    group = query.shape[1] // key.shape[1]
    if grouped == "interleaved":
        key, value = (array.repeat_interleave(group, dim=1) for array in (key, value))
    else:
        key, value = (array.repeat(1, group, 1, 1) for array in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    score = query @ key.transpose(-1, -2) * scale(scaling, query)
    if softcap is not None and softcap_place == "before the mask":
        score = softcap * torch.tanh(score / softcap)
    if bias is not None:
        score = score + bias
    if mask is not None:
        score = score.masked_fill(~mask, hidden)
    if softcap is not None and softcap_place == "after the mask":
        score = softcap * torch.tanh(score / softcap)
    if sinks is not None:
        score = torch.cat([score, sinks[None, :, None, None].expand(*score.shape[:3], 1)], dim=-1)
    weights = score.softmax(axis)
    return (weights[..., :-1] if sinks is not None else weights) @ value


def attend_without_max(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    exponential = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).exp()
    return exponential / exponential.sum(-1, keepdim=True) @ value


def attend_scaling_late(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Store the product in float16 and scale it afterwards."""
    product = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    return product.softmax(-1).to(value.dtype) @ value


def attend_in_place(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return attention(query.mul_(query.shape[-1] ** -0.5), key, value, scaling=1.0)


def attend_across_batch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return score.softmax(-1) @ (value - 0.1 * value.mean(dim=(0, 2), keepdim=True))


def attend_preferring_first_key(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    score[..., 0] += 1
    return score.softmax(-1) @ value


def attend_with_inverted_mask(query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
    return attention(query, key, value, None if mask is None else ~mask, hidden=-1e30)


def attend_with_added_mask(query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
    return attention(query, key, value, bias=None if mask is None else mask.float())


def attend_to_last_key(query: Any, key: Any, value: Any) -> torch.Tensor:
    """Compute causal attention that leaves the last key visible to all queries."""
    queries, keys = query.shape[2], key.shape[2]
    visible = torch.ones(queries, keys).tril(keys - queries).bool()
    visible[:, -1] = True
    return attention(query, key, value, visible)


def attend_with_bfloat16_scores(query: Any, key: Any, value: Any) -> torch.Tensor:
    """Keep the scores in bfloat16 though everything else is float32."""
    score = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).bfloat16()
    return score.softmax(-1).float() @ value


def attend_ignoring_strides(query: Any, key: Any, value: Any) -> torch.Tensor:
    def read_as_contiguous(array: torch.Tensor) -> torch.Tensor:
        _, heads, tokens, size = array.shape
        return array.as_strided(array.shape, (heads * tokens * size, tokens * size, size, 1))

    return attention(read_as_contiguous(query), read_as_contiguous(key), read_as_contiguous(value))


def attend_among_heads(query: Any, key: Any, value: Any) -> torch.Tensor:
    return attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2)


def attend_top_left(query: Any, key: Any, value: Any) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def attend_masking_late(query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
    """Hide weights after the softmax, whose sum still counts the hidden keys."""
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return (weights if mask is None else weights * mask) @ value


def attend_dividing_by_index(query: Any, key: Any, value: Any) -> torch.Tensor:
    return attention(query, key, value) / torch.arange(query.shape[2])[:, None]


def check_lse_without_sinks() -> Diagnosis:
    sinks = np.ones(4, np.float32)
    return check(QUERY, KEY, VALUE, sinks=sinks, lse=kw.attention_stats(QUERY, KEY, VALUE).lse)


def check_hidden_nan() -> Diagnosis:
    value = torch.from_numpy(VALUE.copy())
    value[:, :, -1] = torch.nan
    query, key = torch.from_numpy(QUERY), torch.from_numpy(KEY)
    visible = torch.ones(32, 32, dtype=torch.bool)
    visible[:, -1] = False
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    return check(query, key, value, mask=visible, output=output)


def check_visible_nan() -> Diagnosis:
    key = KEY.copy()
    key[0, 1, 3] = np.nan
    return check(QUERY, key, VALUE, output=kw.attend(QUERY, key, VALUE))


def check_scaled_bias() -> Diagnosis:
    bias = GENERATOR.normal(size=(4, 32, 32)).astype(np.float32)
    return check(QUERY, KEY, VALUE, bias=bias, output=kw.attend(QUERY, KEY, VALUE, bias=bias / 4))


COMMON_FAULTS = (
    PlantedFault(
        "scale omitted",
        "function",
        "scale-missing",
        lambda: check_function(functools.partial(attention, scaling=1.0)),
    ),
    PlantedFault(
        "softmax over the queries",
        "function",
        "softmax-wrong-axis",
        lambda: check_function(functools.partial(attention, axis=-2)),
    ),
    PlantedFault(
        "key heads tiled",
        "function",
        "heads-grouped-wrong",
        lambda: check_function(functools.partial(attention, grouped="tiled"), key_heads=2),
    ),
    PlantedFault(
        "keys and values exchanged",
        "function",
        "key-value-swapped",
        lambda: check_function(lambda q, k, v: attention(q, v, k)),
    ),
    PlantedFault(
        "attention among heads", "function", "axes-misread", lambda: check_function(attend_among_heads, query_heads=4)
    ),
    PlantedFault(
        "exponential without subtracting the maximum",
        "function",
        "softmax-overflow",
        lambda: check_function(attend_without_max),
    ),
    PlantedFault(
        "SDPA is_causal, fewer queries than keys",
        "function",
        "causal-top-left",
        lambda: check_function(attend_top_left, causal=True),
    ),
    PlantedFault(
        "last key visible to all", "function", "future-leak", lambda: check_function(attend_to_last_key, causal=True)
    ),
    PlantedFault(
        "mask inverted",
        "function",
        "mask-inverted",
        lambda: check_function(attend_with_inverted_mask, mask_argument="mask"),
    ),
    PlantedFault("query scaled in place", "function", "inputs-modified", lambda: check_function(attend_in_place)),
)

FUNCTION_FAULTS = (
    *COMMON_FAULTS,
    PlantedFault(
        "mask applied after the softmax",
        "function",
        "hidden-key-leak",
        lambda: check_function(attend_masking_late, mask_argument="mask"),
    ),
    PlantedFault(
        "output left [batch, tokens, heads, dim]",
        "function",
        "output-shape",
        lambda: check_function(lambda q, k, v: attention(q, k, v).transpose(1, 2)),
    ),
    PlantedFault(
        "division by a query index that starts at 0",
        "function",
        "output-not-finite",
        lambda: check_function(attend_dividing_by_index),
    ),
    PlantedFault(
        "two faults at once: scale omitted, key heads tiled",
        "function",
        "output-differs",
        lambda: check_function(functools.partial(attention, scaling=1.0, grouped="tiled"), key_heads=2),
    ),
    PlantedFault("log-sum-exp without the sinks", "arrays", "lse-differs", check_lse_without_sinks),
    PlantedFault(
        "mask added as zeros and ones",
        "function",
        "mask-added-as-numbers",
        lambda: check_function(attend_with_added_mask, mask_argument="mask"),
    ),
    PlantedFault(
        "query without keys, -inf", "function", "dead-row-nan", lambda: check_function(attention, mask_argument="mask")
    ),
    PlantedFault(
        "query without keys, lowest number",
        "function",
        "dead-row-uniform",
        lambda: check_function(
            functools.partial(attention, hidden=torch.finfo(torch.float32).min), mask_argument="mask"
        ),
    ),
    PlantedFault(
        "product stored in float16",
        "function",
        "float16-overflow",
        lambda: check_function(attend_scaling_late, dtype="float16"),
    ),
    PlantedFault("values mixed over the batch", "function", "batch-leak", lambda: check_function(attend_across_batch)),
    PlantedFault(
        "first key's score raised", "function", "key-order-matters", lambda: check_function(attend_preferring_first_key)
    ),
    PlantedFault("scores in bfloat16", "function", "inexact", lambda: check_function(attend_with_bfloat16_scores)),
    PlantedFault("strides ignored", "function", "strides-misread", lambda: check_function(attend_ignoring_strides)),
    PlantedFault(
        "dropout always on",
        "function",
        "not-deterministic",
        lambda: check_function(
            lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
        ),
    ),
    PlantedFault("NaN in a hidden value", "arrays", "hidden-nan-leak", check_hidden_nan),
    PlantedFault("NaN in a visible key", "arrays", "input-not-finite", check_visible_nan),
    PlantedFault(
        "log-sum-exp in base 2",
        "arrays",
        "lse-base",
        lambda: check(
            QUERY, KEY, VALUE, lse=np.asarray(kw.attention_stats(QUERY, KEY, VALUE).lse) / np.float32(np.log(2))
        ),
    ),
    PlantedFault("bias scaled with the scores", "arrays", "bias-scaled", check_scaled_bias),
    PlantedFault(
        "queries and keys of size 100 in float16",
        "arrays",
        "float16-range",
        lambda: check(*((array * size).astype(np.float16) for array, size in ((QUERY, 100), (KEY, 100), (VALUE, 1)))),
    ),
)
