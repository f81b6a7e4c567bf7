"""Expected outputs of sampled queries, and the bound on their rounding error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import make_problem
from keywise.diagnosis.definition import ROUNDING_UNITS, choose_queries, compute_expected, select_queries
from tests.support.planted_functions import attention

SDPA = torch.nn.functional.scaled_dot_product_attention


def draw(*shape: int, seed: int = 0, size: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * size).astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize("size", [0.3, 1.0, 2.0])
def test_rounding_error_is_within_the_bound(dtype: str, head_dim: int, size: float) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    query, key, value = (
        torch.randn(2, 3, 61, head_dim, generator=generator).mul(factor).to(getattr(torch, dtype))
        for factor in (size, 1.0, 1.0)
    )
    problem = make_problem(query, key, value, mask=None, bias=None, scale=None, softcap=None, sinks=None)
    expected = compute_expected(select_queries(problem, np.arange(61)))
    for output in (attention(query, key, value), SDPA(query, key, value), kw.attend(query, key, value)):
        error = np.abs(output.double().numpy() - expected.output)
        assert (error <= expected.tolerance).all()


def test_bound_grows_with_dtype_head_dim_keys_and_size() -> None:
    def bound(dtype: str, head_dim: int = 16, keys: int = 64, size: float = 1.0) -> float:
        query, key = torch.full((1, 1, 4, head_dim), size), torch.ones(1, 1, keys, head_dim)
        arrays = (array.to(getattr(torch, dtype)) for array in (query, key, key))
        problem = make_problem(*arrays, mask=None, bias=None, scale=None, softcap=None, sinks=None)
        return float(compute_expected(select_queries(problem, np.arange(4))).tolerance.max())

    assert bound("bfloat16", size=0.1) > bound("float16", size=0.1) > bound("float32", size=0.1)
    assert bound("float32", head_dim=128) > bound("float32", head_dim=16)
    assert bound("float32", size=4.0) > bound("float32", size=1.0)
    assert bound("float32", keys=6400) > bound("float32", keys=64)
    assert bound("bfloat16", size=100.0) == np.inf
    assert ROUNDING_UNITS["float32"] == np.finfo(np.float32).eps / 2


def test_sampled_queries_have_the_output_of_the_complete_problem() -> None:
    query, key = draw(2, 4, 40, 8), draw(2, 2, 50, 8, seed=1)
    mask = kw.Mask(causal=True, window=(9, 0), starts=[3, 0], documents=np.arange(50)[None].repeat(2, 0) // 20)
    problem = make_problem(query, key, key, mask=mask, bias=draw(4, 40, 50), scale=None, softcap=3.0, sinks=draw(4))
    queries = choose_queries(40, 7)
    assert queries[0] == 0
    assert queries[-1] == 39
    assert queries.size == 7
    sampled = reference.evaluate(select_queries(problem, queries)).output
    np.testing.assert_allclose(sampled, reference.evaluate(problem).output[:, :, queries], atol=1e-12)
