"""Sizes and strides whose products exceed 64 bits: refused, or a MemoryError, before anything is written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention.operation import Chunks, run


def expand(batch: int, heads: int, tokens: int, width: int = 4) -> Any:
    """Return a tensor of these sizes whose elements share the memory of one row."""
    return torch.zeros(1, 1, 1, width).expand(batch, heads, tokens, width)


TOO_LARGE = {
    "output": (expand(1, 2**42, 1), expand(1, 2**42, 1), expand(1, 2**42, 1, 2**20)),
    "output by the batch": (expand(2**40, 1, 2**10), expand(2**40, 1, 1), expand(2**40, 1, 1, 2**12)),
    "queries": (expand(1, 2**31, 2**29), expand(1, 1, 3), expand(1, 1, 3)),
    "batch x heads": (expand(2**30, 2**30, 1), expand(2**30, 2**30, 1), expand(2**30, 2**30, 1)),
    "keys": (expand(1, 1, 1, 2**20), expand(1, 2**12, 2**30, 2**20), expand(1, 2**12, 2**30, 2**20)),
    "key mass": (expand(2**15, 2**14, 1), expand(2**15, 2**14, 2**30), expand(2**15, 2**14, 2**30)),
    "memory": (expand(1, 2**40, 1), expand(1, 2**40, 1), expand(1, 2**40, 1)),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_sizes_beyond_64_bits_or_memory_are_refused(name: str) -> None:
    query, key, value = TOO_LARGE[name]
    for compute in (kw.attend, kw.attention_stats, kw.partial):
        with pytest.raises((kw.ShapeError, MemoryError)):
            compute(query, key, value)


def test_output_beyond_64_bits_names_the_argument() -> None:
    query, key, value = TOO_LARGE["output by the batch"]
    with pytest.raises(kw.ShapeError, match="value must have an output whose size fits 64 bits"):
        kw.attend(query, key, value)


def test_strides_beyond_64_bits_are_refused() -> None:
    query = np.zeros((1, 1, 1, 4), np.float32)
    far = np.lib.stride_tricks.as_strided(np.zeros((1, 1, 1, 4), np.float32), (1, 1, 3, 4), (0, 0, 2**61, 4))
    with pytest.raises(kw.ShapeError, match="key must have strides"):
        kw.attend(query, far, far)


def test_stride_of_an_axis_of_one_element_may_be_any_number(target: str) -> None:
    random = np.random.default_rng(0)
    query, key, value = (random.normal(size=(1, 2, tokens, 4)).astype(np.float32) for tokens in (3, 1, 1))
    odd_key, odd_value = (
        np.lib.stride_tricks.as_strided(x, x.shape, (2**62, x.strides[1], 2**62, 4)) for x in (key, value)
    )
    np.testing.assert_array_equal(kw.attend(query, odd_key, odd_value), kw.attend(query, key, value))
    pieces = run(query, Chunks([odd_key, key]), Chunks([odd_value, value]))
    twice = kw.attend(query, np.concatenate([key, key], axis=2), np.concatenate([value, value], axis=2))
    np.testing.assert_array_equal(pieces, twice)


def test_top_keys_beyond_64_bits_are_refused() -> None:
    query, key = expand(2**20, 2**12, 1), expand(2**20, 2**12, 5)
    with pytest.raises((kw.KeywiseError, MemoryError)):
        kw.attention_stats(query, key, key, top_k=2**31 - 1)


def test_arrays_without_elements_may_have_any_other_size(target: str) -> None:
    key = torch.empty(1, 1, 0, 8)
    assert not kw.attend(torch.ones(1, 1, 3, 8), key, key).any()
    assert kw.attend(torch.ones(0, 2**20, 3, 8), torch.ones(0, 2**20, 5, 8), torch.ones(0, 2**20, 5, 8)).shape[0] == 0
