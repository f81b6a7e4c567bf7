"""The promise on exactness without any floor: largest errors at most twice those of plain arithmetic.

The largest error of one problem is partly luck, so the mean over ten problems is held to it.
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
from tests.support.judging import numbers, worst
from tests.support.plain import plain

RESULTS = ("output", "lse", "entropy", "top_weights", "key_mass")


@lru_cache(maxsize=2)
def cases(dtype: str, head_dim: int, peaky: bool) -> list[tuple[Case, reference.Result]]:
    """Return several problems with their truth: of 200 rows each."""
    made = [
        Case(dtype, 1, 1, queries=100, keys=300, head_dim=head_dim, value_dim=64, peaky=peaky, seed=seed)
        for seed in range(10)
    ]
    return [(case, reference.evaluate(case.problem())) for case in made]


@lru_cache(maxsize=2)
def plain_errors(dtype: str, head_dim: int, peaky: bool) -> dict[str, float]:
    """Return sums of plain arithmetic's largest errors: of outputs in their dtype, of statistics in float32."""
    errors = dict.fromkeys(RESULTS, 0.0)
    for case, truth in cases(dtype, head_dim, peaky):
        single = plain(case.problem(), torch.float32, scale_first=False)
        same = plain(case.problem(), getattr(torch, dtype), scale_first=False)
        for name in RESULTS:
            got = getattr(same if name == "output" else single, name)
            errors[name] += worst(got, getattr(truth, name))
    return errors


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [8, 64, 128, 256, 512])
@pytest.mark.parametrize("peaky", [False, True], ids=["normal", "peaky"])
def test_errors_are_at_most_twice_plain_ones(kernel: str, dtype: str, head_dim: int, peaky: bool) -> None:
    allowed = {name: 2 * error for name, error in plain_errors(dtype, head_dim, peaky).items()}
    errors = dict.fromkeys(RESULTS, 0.0)
    for case, truth in cases(dtype, head_dim, peaky):
        stats = kw.attention_stats(**case.arguments())
        for name in RESULTS:
            errors[name] += worst(numbers(getattr(stats, name)), getattr(truth, name))
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
    assert smallest / np.float32(4) > 0  # the switch that flushes such numbers is put back
