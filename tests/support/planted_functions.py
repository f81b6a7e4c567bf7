"""Faults planted in functions and in arrays: attention as people write it, with one thing wrong each."""

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


class Plant(NamedTuple):
    """One fault: what is done, where, the code that must name it, and how to run the check."""

    fault: str
    place: str
    code: str
    run: Callable[[], Diagnosis]


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scale: Callable[[float, torch.Tensor], float] = lambda scale, _: scale,
    scaling: float | None = None,
    softcap: float | None = None,
    capped: str = "before the mask",
    sinks: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    axis: int = -1,
    hidden: float = -torch.inf,
    grouped: str = "interleaved",
) -> torch.Tensor:
    """Attend in the plainest way; every keyword is a place where people go wrong."""
    group = query.shape[1] // key.shape[1]
    if grouped == "interleaved":
        key, value = (array.repeat_interleave(group, dim=1) for array in (key, value))
    else:
        key, value = (array.repeat(1, group, 1, 1) for array in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    score = query @ key.transpose(-1, -2) * scale(scaling, query)
    if softcap is not None and capped == "before the mask":
        score = softcap * torch.tanh(score / softcap)
    if bias is not None:
        score = score + bias
    if mask is not None:
        score = score.masked_fill(~mask, hidden)
    if softcap is not None and capped == "after the mask":
        score = softcap * torch.tanh(score / softcap)
    if sinks is not None:
        score = torch.cat([score, sinks[None, :, None, None].expand(*score.shape[:3], 1)], dim=-1)
    weights = score.softmax(axis)
    return (weights[..., :-1] if sinks is not None else weights) @ value


def without_peak(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    exponential = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).exp()
    return exponential / exponential.sum(-1, keepdim=True) @ value


def scaled_late(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Store the product in float16 and scale it afterwards."""
    product = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    return product.softmax(-1).to(value.dtype) @ value


def in_place(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return attention(query.mul_(query.shape[-1] ** -0.5), key, value, scaling=1.0)


def over_the_batch(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    return score.softmax(-1) @ (value - 0.1 * value.mean(dim=(0, 2), keepdim=True))


def first_key_preferred(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    score = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    score[..., 0] += 1
    return score.softmax(-1) @ value


def inverted(query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
    return attention(query, key, value, None if mask is None else ~mask, hidden=-1e30)


def added_as_numbers(query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
    return attention(query, key, value, bias=None if mask is None else mask.float())


def last_key_open(query: Any, key: Any, value: Any) -> torch.Tensor:
    """Be causal, but leave the last key visible to all."""
    queries, keys = query.shape[2], key.shape[2]
    seen = torch.ones(queries, keys).tril(keys - queries).bool()
    seen[:, -1] = True
    return attention(query, key, value, seen)


def in_half(query: Any, key: Any, value: Any) -> torch.Tensor:
    """Keep the scores in bfloat16 though everything else is float32."""
    score = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).bfloat16()
    return score.softmax(-1).float() @ value


def ignoring_strides(query: Any, key: Any, value: Any) -> torch.Tensor:
    def plain(array: torch.Tensor) -> torch.Tensor:
        _, heads, tokens, size = array.shape
        return array.as_strided(array.shape, (heads * tokens * size, tokens * size, size, 1))

    return attention(plain(query), plain(key), plain(value))


def among_heads(query: Any, key: Any, value: Any) -> torch.Tensor:
    return attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)).transpose(1, 2)


def causal_without_position(query: Any, key: Any, value: Any) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def masked_late(query: Any, key: Any, value: Any, mask: Any = None) -> torch.Tensor:
    """Hide weights after the softmax, whose sum still counts the hidden keys."""
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    return (weights if mask is None else weights * mask) @ value


def divided_by_row(query: Any, key: Any, value: Any) -> torch.Tensor:
    return attention(query, key, value) / torch.arange(query.shape[2])[:, None]


def lse_without_sinks() -> Diagnosis:
    sinks = np.ones(4, np.float32)
    return check(QUERY, KEY, VALUE, sinks=sinks, lse=kw.attention_stats(QUERY, KEY, VALUE).lse)


def hidden_nan() -> Diagnosis:
    value = torch.from_numpy(VALUE.copy())
    value[:, :, -1] = torch.nan
    query, key = torch.from_numpy(QUERY), torch.from_numpy(KEY)
    seen = torch.ones(32, 32, dtype=torch.bool)
    seen[:, -1] = False
    output = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return check(query, key, value, mask=seen, output=output)


def visible_nan() -> Diagnosis:
    key = KEY.copy()
    key[0, 1, 3] = np.nan
    return check(QUERY, key, VALUE, output=kw.attend(QUERY, key, VALUE))


def scaled_bias() -> Diagnosis:
    bias = GENERATOR.normal(size=(4, 32, 32)).astype(np.float32)
    return check(QUERY, KEY, VALUE, bias=bias, output=kw.attend(QUERY, KEY, VALUE, bias=bias / 4))


TEN_WRONG = (
    Plant(
        "scores not scaled",
        "function",
        "scale-missing",
        lambda: check_function(functools.partial(attention, scaling=1.0)),
    ),
    Plant(
        "softmax over the queries",
        "function",
        "softmax-wrong-axis",
        lambda: check_function(functools.partial(attention, axis=-2)),
    ),
    Plant(
        "key heads tiled",
        "function",
        "heads-grouped-wrong",
        lambda: check_function(functools.partial(attention, grouped="tiled"), key_heads=2),
    ),
    Plant(
        "keys and values exchanged",
        "function",
        "key-value-swapped",
        lambda: check_function(lambda q, k, v: attention(q, v, k)),
    ),
    Plant("heads attend to heads", "function", "axes-misread", lambda: check_function(among_heads, query_heads=4)),
    Plant("exponential without the peak", "function", "softmax-overflow", lambda: check_function(without_peak)),
    Plant(
        "SDPA is_causal, fewer queries than keys",
        "function",
        "causal-top-left",
        lambda: check_function(causal_without_position, causal=True),
    ),
    Plant("last key visible to all", "function", "future-leak", lambda: check_function(last_key_open, causal=True)),
    Plant("mask inverted", "function", "mask-inverted", lambda: check_function(inverted, mask_argument="mask")),
    Plant("query scaled in place", "function", "inputs-modified", lambda: check_function(in_place)),
)

FUNCTIONS = (
    *TEN_WRONG,
    Plant(
        "mask applied after the softmax",
        "function",
        "hidden-key-leak",
        lambda: check_function(masked_late, mask_argument="mask"),
    ),
    Plant(
        "output left [batch, tokens, heads, dim]",
        "function",
        "output-shape",
        lambda: check_function(lambda q, k, v: attention(q, k, v).transpose(1, 2)),
    ),
    Plant(
        "division by a row number that starts at 0",
        "function",
        "output-not-finite",
        lambda: check_function(divided_by_row),
    ),
    Plant(
        "two faults at once: scale left out, key heads tiled",
        "function",
        "output-differs",
        lambda: check_function(functools.partial(attention, scaling=1.0, grouped="tiled"), key_heads=2),
    ),
    Plant("log-sum-exp without the sinks", "arrays", "lse-differs", lse_without_sinks),
    Plant(
        "mask added as zeros and ones",
        "function",
        "mask-added-as-numbers",
        lambda: check_function(added_as_numbers, mask_argument="mask"),
    ),
    Plant(
        "row without keys, -inf", "function", "dead-row-nan", lambda: check_function(attention, mask_argument="mask")
    ),
    Plant(
        "row without keys, lowest number",
        "function",
        "dead-row-uniform",
        lambda: check_function(
            functools.partial(attention, hidden=torch.finfo(torch.float32).min), mask_argument="mask"
        ),
    ),
    Plant(
        "product stored in float16",
        "function",
        "float16-overflow",
        lambda: check_function(scaled_late, dtype="float16"),
    ),
    Plant("values mixed over the batch", "function", "batch-leak", lambda: check_function(over_the_batch)),
    Plant("first key preferred", "function", "key-order-matters", lambda: check_function(first_key_preferred)),
    Plant("scores in bfloat16", "function", "inexact", lambda: check_function(in_half)),
    Plant("strides ignored", "function", "strides-misread", lambda: check_function(ignoring_strides)),
    Plant(
        "dropout always on",
        "function",
        "not-deterministic",
        lambda: check_function(
            lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
        ),
    ),
    Plant("NaN in a hidden value", "arrays", "hidden-nan-leak", hidden_nan),
    Plant("NaN in a visible key", "arrays", "input-not-finite", visible_nan),
    Plant(
        "log-sum-exp in base 2",
        "arrays",
        "lse-base",
        lambda: check(
            QUERY, KEY, VALUE, lse=np.asarray(kw.attention_stats(QUERY, KEY, VALUE).lse) / np.float32(np.log(2))
        ),
    ),
    Plant("bias scaled with the scores", "arrays", "bias-scaled", scaled_bias),
    Plant(
        "queries and keys of size 100 in float16",
        "arrays",
        "float16-range",
        lambda: check(*((array * size).astype(np.float16) for array, size in ((QUERY, 100), (KEY, 100), (VALUE, 1)))),
    ),
)
