"""Largest errors are at most twice those of plain arithmetic, without a floor.

The largest error of one problem is partly chance, so the sum over ten problems is compared.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention import reference
from tests.support.cases import DTYPES, Case
from tests.support.judging import as_float64, find_largest_error
from tests.support.plain import attend_plainly

RESULTS = ("output", "lse", "entropy", "top_weights", "key_mass")


@lru_cache(maxsize=2)
def cases(dtype: str, head_dim: int, peaky: bool) -> list[tuple[Case, reference.Result]]:
    """Return ten problems of 200 queries, each with the result of the definition."""
    made = [
        Case(dtype, 1, 1, queries=100, keys=300, head_dim=head_dim, value_dim=64, peaky=peaky, seed=seed)
        for seed in range(10)
    ]
    return [(case, reference.evaluate(case.problem())) for case in made]


@lru_cache(maxsize=2)
def plain_errors(dtype: str, head_dim: int, peaky: bool) -> dict[str, float]:
    """Return sums of plain arithmetic's largest errors: of outputs in their dtype, of statistics in float32."""
    errors = dict.fromkeys(RESULTS, 0.0)
    for case, reference_result in cases(dtype, head_dim, peaky):
        single = attend_plainly(case.problem(), torch.float32, scale_first=False)
        same = attend_plainly(case.problem(), getattr(torch, dtype), scale_first=False)
        for name in RESULTS:
            actual = getattr(same if name == "output" else single, name)
            errors[name] += find_largest_error(actual, getattr(reference_result, name))
    return errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64, 128, 256, 512])
@pytest.mark.parametrize("peaky", [False, True], ids=["normal", "peaky"])
def test_errors_are_at_most_twice_plain_ones(kernel: str, dtype: str, head_dim: int, peaky: bool) -> None:
    allowed = {name: 2 * error for name, error in plain_errors(dtype, head_dim, peaky).items()}
    errors = dict.fromkeys(RESULTS, 0.0)
    for case, reference_result in cases(dtype, head_dim, peaky):
        stats = kw.attention_stats(**case.arguments())
        for name in RESULTS:
            errors[name] += find_largest_error(as_float64(getattr(stats, name)), getattr(reference_result, name))
    over = {name: f"{error:.3g} > {allowed[name]:.3g}" for name, error in errors.items() if error > allowed[name]}
    assert not over


def test_error_of_the_exponential_is_within_its_stated_bound(kernel: str) -> None:
    """native/exp.h states the bounds over [-126, 0]; with scale ln 2 a score is its own exponent of 2."""
    stated = 1.1e-7 if kernel == "portable" else 8e-8
    exponent = -np.random.default_rng(0).uniform(0, 126, 100_000).astype(np.float32)
    key = np.stack([np.zeros_like(exponent), exponent], axis=1)[:, None, :, None]
    value = np.broadcast_to(np.array([0, 1], np.float32)[:, None], key.shape)
    query = np.ones((exponent.size, 1, 1, 1), np.float32)
    weight = kw.partial(query, key, value, scale=math.log(2)).values.ravel()
    assert np.abs(weight / np.exp2(exponent.astype(np.float64)) - 1).max() <= stated
    hidden = kw.partial(query, key, value, scale=math.log(2), mask=np.array([True, False])).values
    assert not hidden.any()


def test_subnormal_weights_are_flushed_in_the_kernel_only(kernel: str) -> None:
    smallest = np.float32(2.0**-126)
    exponent = -np.linspace(126.5, 300, 1000, dtype=np.float32)
    key = np.concatenate([[0], exponent]).astype(np.float32)[None, None, :, None]
    value = np.ones_like(key)
    value[0, 0, 0] = 0
    query = np.ones((1, 1, 1, 1), np.float32)
    weights = kw.partial(query, key, value, scale=math.log(2)).values
    assert 0 <= weights.item() <= 1000 * smallest
    assert smallest / np.float32(4) > 0  # subnormal numbers are not flushed outside of the kernel
