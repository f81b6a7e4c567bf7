"""Partials: the identity, regrouping, and random splits of the keys that merge to attention over all of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import keywise as kw
from keywise.attention import reference
from keywise.attention.operation import compute_partial_with_stats
from keywise.attention.problem import make_problem
from tests.support.cases import DTYPES, MASKS, Case, limit_size
from tests.support.judging import check_output, expect_case

FIELDS = ("running_max", "running_sum", "values")


def make_partials(count: int, seed: int = 0) -> list[kw.Partial]:
    random_numbers = np.random.default_rng(seed)
    partials = []
    for number in range(count):
        running_max = random_numbers.normal(0, 5, (2, 3, 4)).astype(np.float32)
        running_sum = random_numbers.uniform(1, 9, (2, 3, 4)).astype(np.float32)
        values = random_numbers.standard_normal((2, 3, 4, 5)).astype(np.float32)
        # Each partial has some queries without keys.
        none = random_numbers.random((2, 3, 4)) < 0.3 if number else np.zeros((2, 3, 4), bool)
        partials.append(
            kw.Partial(
                np.where(none, -np.inf, running_max),
                np.where(none, 0, running_sum),
                np.where(none[..., None], 0, values),
            )
        )
    return partials


def assert_close(one: kw.Partial, other: kw.Partial, rtol: float = 1e-5) -> None:
    for name in FIELDS:
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=rtol, atol=rtol, err_msg=name)


def test_merge_with_empty_partial_has_the_same_bits() -> None:
    empty = kw.Partial.empty(2, 3, 4, 5)
    for part in make_partials(4):
        for merged in (kw.merge(part, empty), kw.merge(empty, part), kw.merge(empty, part, empty), kw.merge(part)):
            for name in FIELDS:
                np.testing.assert_array_equal(getattr(merged, name), getattr(part, name))


def test_merge_of_empty_partials_is_empty_with_output_zero() -> None:
    empty = kw.Partial.empty(2, 3, 4, 5)
    merged = kw.merge(empty, empty)
    assert np.isneginf(merged.running_max).all()
    assert not merged.running_sum.any()
    assert not merged.output().any()
    assert np.isneginf(merged.lse()).all()
    assert np.isneginf(merged.lse(sinks=np.zeros(3))).all()
    assert not merged.output(sinks=np.zeros(3)).any()


def test_merge_is_associative_and_commutative() -> None:
    a, b, c, d = make_partials(4, seed=1)
    complete = kw.merge(a, b, c, d)
    for other in (
        kw.merge(kw.merge(a, b), kw.merge(c, d)),
        kw.merge(a, kw.merge(b, kw.merge(c, d))),
        kw.merge(a, kw.merge(b, c), d),
    ):
        assert_close(complete, other)
    for order in itertools.permutations((a, b, c, d)):
        assert_close(complete, kw.merge(*order))


def test_merge_of_distant_maxima_does_not_overflow() -> None:
    rows = np.ones((1, 1, 1), np.float32)
    high = kw.Partial(3e4 * rows, rows, rows[..., None] * 2)
    low = kw.Partial(-3e4 * rows, rows, rows[..., None] * 5)
    assert kw.merge(low, high).output().item() == 2
    assert kw.merge(high, low).lse().item() == 3e4


def split_keys(keys: int, seed: int) -> list[tuple[int, int]]:
    """Split the keys into five ranges, some of them empty."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, keys + 1, 4)).tolist()
    return list(itertools.pairwise([0, *cuts, keys]))


CASES = [
    limit_size(
        Case(DTYPES[number % 3], queries=queries, keys=keys, group=1 + number % 3, head_dim=24, value_dim=17, mask=mask,
             softcap=(None, 6.0)[number % 2], sinks=number % 3 == 0, bias=("none", "per pair")[number // 2 % 2],
             peaky=number % 2 == 1, seed=number)
    )
    for number, (mask, (queries, keys)) in enumerate(itertools.product(MASKS, [(1, 600), (7, 33), (40, 300)]))
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.mask}-{case.queries}x{case.keys}-{case.dtype}")
def test_partials_of_splits_merge_to_attention_over_all_keys(case: Case, target: str) -> None:
    arguments = case.arguments()
    mask, sinks, bias = arguments.pop("mask"), arguments.pop("sinks"), arguments.pop("bias")
    mask = kw.Mask() if mask is None else kw.Mask(allowed=mask) if isinstance(mask, np.ndarray) else mask
    lengths = np.full(case.batch, case.keys) if mask.lengths is None else mask.lengths
    parts = []
    for begin, end in split_keys(case.keys, case.seed):
        options = {name: arguments[name] for name in ("scale", "softcap")}
        allowed = None if mask.allowed is None else mask.allowed[..., begin:end]
        parts.append(
            kw.partial(
                arguments["query"],
                arguments["key"][:, :, begin:end],
                arguments["value"][:, :, begin:end],
                mask=kw.Mask(mask.causal, mask.window, lengths, mask.starts, mask.keep_first, mask.documents, allowed),
                bias=None if bias is None else bias[..., begin:end],
                first_key=begin,
                **options,
            )
        )
    merged = kw.merge(*parts)
    expectation = expect_case(case)
    check_output(merged.output(sinks), expectation)
    lse = merged.lse(sinks)
    assert (np.isneginf(lse) == np.isneginf(expectation.reference_result.lse)).all()
    np.testing.assert_allclose(lse, expectation.reference_result.lse, atol=expectation.tolerance["lse"], rtol=0)


def test_partial_equals_the_definition(target: str) -> None:
    case = Case(queries=3, keys=70, mask="causal window")
    arguments = case.arguments()
    arguments.pop("sinks")
    actual = kw.partial(**arguments)
    reference_result = reference.evaluate(make_problem(**arguments, sinks=None))
    np.testing.assert_allclose(actual.running_max, reference_result.running_max, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual.running_sum, reference_result.running_sum, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(actual.values, reference_result.values, rtol=1e-4, atol=1e-4)
    assert {array.dtype for array in (actual.running_max, actual.running_sum, actual.values)} == {np.dtype(np.float32)}


def test_merge_refuses_no_partials_and_other_shapes() -> None:
    with pytest.raises(kw.OptionError, match="partials must be one partial or more"):
        kw.merge()
    with pytest.raises(kw.ShapeError, match="partials must have the same shape"):
        kw.merge(kw.Partial.empty(1, 2, 3, 4), kw.Partial.empty(1, 2, 5, 4))
    with pytest.raises(kw.ShapeError, match="sinks"):
        kw.Partial.empty(1, 2, 3, 4).output(sinks=np.zeros(3))
    with pytest.raises(kw.ShapeError, match="sinks"):
        kw.Partial.empty(1, 2, 3, 4).lse(sinks=np.zeros((1, 2)))


@pytest.mark.parametrize(("queries", "dtype"), [(1, np.float32), (3, np.float16), (40, np.float32)])
def test_partial_with_stats_equals_partial_and_statistics(target: str, queries: int, dtype: type) -> None:
    random_numbers = np.random.default_rng(0)
    query, key, value = (random_numbers.normal(size=(1, 2, n, 16)).astype(dtype) for n in (queries, 1500, 1500))
    seen = random_numbers.random((1, 1, 1, 1500)) < 0.5
    part, stats = compute_partial_with_stats(query, key, value, mask=seen, scale=0.3, top_k=5)
    alone = kw.partial(query, key, value, mask=seen, scale=0.3)
    complete = kw.attention_stats(query, key, value, mask=seen, scale=0.3, top_k=5)
    for name in FIELDS:
        np.testing.assert_allclose(getattr(part, name), getattr(alone, name), rtol=1e-5, atol=1e-5)
    for name in ("lse", "entropy", "top_keys", "top_weights", "top_mass"):
        np.testing.assert_array_equal(getattr(stats, name), getattr(complete, name), err_msg=name)
    assert stats.output is None
    assert stats.key_mass is None


def test_shares_of_merged_partials_sum_to_one() -> None:
    parts = make_partials(4)
    complete = kw.merge(*parts)
    shares = [part.share_of(complete) for part in parts]
    np.testing.assert_allclose(np.sum(shares, axis=0), 1, rtol=1e-6)
    assert all((share[part.running_sum == 0] == 0).all() for share, part in zip(shares, parts, strict=True))
    nothing = kw.Partial.empty(2, 3, 4, 5)
    assert (nothing.share_of(nothing) == 0).all()
