"""The definition against cases computed by hand and against torch in float64; every target passes the same cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

import keywise as kw
from keywise.attention import reference
from keywise.attention.problem import Problem, make_problem
from keywise.attention.reference import find_visible_keys
from tests.support.cases import MASKS, Case
from tests.support.judging import as_float64

CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def draw_normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compute_weights(query: np.ndarray, key: np.ndarray, **options: object) -> np.ndarray:
    """Return the attention weights: with unit vectors as values the output is the weights."""
    batch, heads, keys, _ = key.shape
    unit = np.broadcast_to(np.eye(keys, dtype=np.float32), (batch, heads, keys, keys))
    return kw.attend(query, key, unit, **options)


# Computed by hand


@pytest.mark.parametrize("keys", [1, 2, 7, 64, 1030])
def test_identical_keys_have_equal_weights(target: str, keys: int) -> None:
    query, value = draw_normal(1, 2, 3, 8), draw_normal(1, 2, keys, 4, seed=1)
    key = np.broadcast_to(draw_normal(1, 2, 1, 8, seed=2), (1, 2, keys, 8))
    stats = kw.attention_stats(query, key, value, top_k=1)
    np.testing.assert_allclose(stats.output, value.mean(axis=2, keepdims=True).repeat(3, axis=2), **CLOSE)
    np.testing.assert_allclose(stats.entropy, math.log(keys), **CLOSE)
    np.testing.assert_allclose(stats.top_weights, 1 / keys, **CLOSE)
    np.testing.assert_allclose(stats.key_mass, 3 / keys, **CLOSE)
    assert (stats.top_keys == 0).all(), "ties go to the lower key"


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 5.0, 20.0, 90.0, -3.0])
def test_weight_of_one_matching_key_follows_the_scale(target: str, scale: float) -> None:
    keys = 9
    key = np.eye(keys, dtype=np.float32)[None, None]
    stats = kw.attention_stats(key[:, :, 4:5], key, key, scale=scale, top_k=1)
    match = 1 / (1 + (keys - 1) * math.exp(-scale))
    other = math.exp(-scale) * match
    expected = np.full(keys, other)
    expected[4] = match
    np.testing.assert_allclose(stats.output[0, 0, 0], expected, **CLOSE)
    np.testing.assert_allclose(stats.lse.item(), math.log(math.exp(scale) + keys - 1), **CLOSE)
    entropy = -match * math.log(match) - ((keys - 1) * other * math.log(other) if other else 0)
    np.testing.assert_allclose(stats.entropy.item(), entropy, rtol=2e-5, atol=2e-6)
    assert stats.top_keys.item() == (4 if scale > 0 else 0)


def test_scale_defaults_to_one_over_root_head_dim(target: str) -> None:
    query, key, value = draw_normal(1, 1, 4, 25), draw_normal(1, 1, 6, 25, seed=1), draw_normal(1, 1, 6, 3, seed=2)
    assert np.array_equal(kw.attend(query, key, value), kw.attend(query, key, value, scale=0.2))


def test_queries_without_keys_have_output_zero(target: str) -> None:
    query, key, value = draw_normal(1, 2, 3, 8), draw_normal(1, 1, 6, 8, seed=1), draw_normal(1, 1, 6, 5, seed=2)
    allowed = np.ones((3, 6), bool)
    allowed[1] = False
    stats = kw.attention_stats(
        query, key, value, mask=allowed, sinks=np.zeros(2, np.float32), top_k=2, segment_bounds=[0, 3, 6]
    )
    assert not stats.output[:, :, 1].any()
    assert np.isneginf(stats.lse[:, :, 1]).all()
    assert not stats.entropy[:, :, 1].any()
    assert (stats.top_keys[:, :, 1] == -1).all()
    assert not stats.top_weights[:, :, 1].any()
    assert not stats.top_mass[:, :, 1].any()
    assert not stats.segment_mass[:, :, 1].any()
    without = kw.attention_stats(
        query[:, :, ::2], key, value, sinks=np.zeros(2, np.float32), top_k=2, segment_bounds=[0, 3, 6]
    )
    np.testing.assert_allclose(stats.key_mass, without.key_mass, **CLOSE)
    np.testing.assert_allclose(stats.output[:, :, ::2], without.output, **CLOSE)


@pytest.mark.parametrize(("queries", "keys", "batch"), [(0, 5, 1), (3, 0, 1), (3, 5, 0), (0, 0, 1)])
def test_sizes_of_zero_have_empty_or_zero_results(target: str, queries: int, keys: int, batch: int) -> None:
    query, key, value = (
        draw_normal(batch, 2, queries, 8),
        draw_normal(batch, 2, keys, 8),
        draw_normal(batch, 2, keys, 3),
    )
    stats = kw.attention_stats(
        query, key, value, mask=kw.Mask(causal=True), top_k=2, segment_bounds=[0, keys] if keys else None
    )
    assert stats.output.shape == (batch, 2, queries, 3)
    assert stats.key_mass.shape == (batch, 2, keys)
    assert stats.top_keys.shape == (batch, 2, queries, 2)
    assert not as_float64(stats.output).any()
    assert not as_float64(stats.key_mass).any()
    if not keys:
        assert np.isneginf(stats.lse).all()
        assert (stats.top_keys == -1).all()


def test_hidden_nan_does_not_leak_into_output_or_statistics(target: str) -> None:
    query, key, value = draw_normal(1, 1, 4, 8), draw_normal(1, 1, 9, 8, seed=1), draw_normal(1, 1, 9, 8, seed=2)
    clean = kw.attention_stats(query, key, value, mask=kw.Mask(lengths=[6]), top_k=9)
    key[:, :, 6:], value[:, :, 6:] = np.nan, np.inf
    poisoned = kw.attention_stats(query, key, value, mask=kw.Mask(lengths=[6]), top_k=9)
    for name in ("output", "lse", "entropy", "top_keys", "top_weights", "key_mass"):
        np.testing.assert_array_equal(getattr(poisoned, name), getattr(clean, name), err_msg=name)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_visible_nan_reaches_only_the_queries_that_see_it(target: str, poison: float) -> None:
    query, key, value = draw_normal(1, 1, 5, 8), draw_normal(1, 1, 5, 8, seed=1), draw_normal(1, 1, 5, 8, seed=2)
    clean = kw.attend(query, key, value, mask=kw.Mask(causal=True))
    value[0, 0, 3, 2] = poison
    actual = kw.attend(query, key, value, mask=kw.Mask(causal=True))
    np.testing.assert_array_equal(actual[:, :, :3], clean[:, :, :3])
    assert not np.isfinite(actual[0, 0, 3:, 2]).any()
    np.testing.assert_allclose(np.delete(actual, 2, axis=3), np.delete(clean, 2, axis=3), **CLOSE)


def test_sinks_take_the_share_of_one_more_key(target: str) -> None:
    query, key, value = draw_normal(2, 2, 3, 8), draw_normal(2, 1, 6, 8, seed=1), draw_normal(2, 1, 6, 5, seed=2)
    sinks = np.array([0.7, -1.5], np.float32)
    without, stats = kw.attention_stats(query, key, value), kw.attention_stats(query, key, value, sinks=sinks)
    kept = 1 / (1 + np.exp(sinks[:, None] - without.lse))
    np.testing.assert_allclose(stats.output, without.output * kept[..., None], **CLOSE)
    np.testing.assert_allclose(stats.key_mass.sum(axis=2), kept.sum(axis=2), **CLOSE)
    np.testing.assert_allclose(stats.lse, np.log(np.exp(without.lse) + np.exp(sinks)[:, None]), **CLOSE)
    np.testing.assert_allclose(stats.entropy, kept * without.entropy - kept * np.log(kept), **CLOSE)
    np.testing.assert_allclose(compute_weights(query, key, sinks=sinks).sum(axis=3), kept, **CLOSE)


def test_sink_of_minus_infinity_takes_no_weight_and_a_huge_one_all(target: str) -> None:
    query, key, value = draw_normal(1, 2, 3, 8), draw_normal(1, 2, 6, 8, seed=1), draw_normal(1, 2, 6, 5, seed=2)
    actual = kw.attention_stats(query, key, value, sinks=np.array([-np.inf, 500], np.float32))
    np.testing.assert_allclose(actual.output[:, 0], kw.attend(query, key, value)[:, 0], **CLOSE)
    assert not actual.output[:, 1].any()
    np.testing.assert_allclose(actual.lse[:, 1], 500)
    assert not actual.key_mass[:, 1].any()
    assert not actual.entropy[:, 1].any()


def test_softcap_is_applied_before_bias_and_bias_before_mask(target: str) -> None:
    query, key = draw_normal(1, 1, 1, 4) * 9, draw_normal(1, 1, 3, 4, seed=1) * 9
    bias = np.array([0.0, 2.5, -np.inf], np.float32)
    score = 1.5 * np.tanh((query @ key.swapaxes(2, 3)).ravel().astype(float) * 0.5 / 1.5) + bias
    share = np.exp(score) / np.exp(score).sum()
    np.testing.assert_allclose(compute_weights(query, key, scale=0.5, softcap=1.5, bias=bias).ravel(), share, **CLOSE)
    hidden = compute_weights(query, key, scale=0.5, softcap=1.5, bias=bias, mask=np.array([True, False, True])).ravel()
    np.testing.assert_array_equal(hidden, [1, 0, 0])


def test_consecutive_query_heads_share_a_key_head(target: str) -> None:
    key, value = np.zeros((1, 3, 2, 4), np.float32), np.zeros((1, 3, 2, 1), np.float32)
    value[0, :, :, 0] = [[10, 10], [20, 20], [30, 30]]
    for group in (1, 2, 3, 4, 7, 8):
        actual = kw.attend(draw_normal(1, 3 * group, 2, 4), key, value)
        np.testing.assert_allclose(actual[0, :, 0, 0], np.repeat([10, 20, 30], group), **CLOSE)


def test_key_mass_is_a_sum_per_query_head_not_a_mean(target: str) -> None:
    for group in (1, 2, 3, 4, 6, 7, 8):
        query, key, value = (
            draw_normal(2, 2 * group, 5, 8),
            draw_normal(2, 2, 17, 8, seed=1),
            draw_normal(2, 2, 17, 3, seed=2),
        )
        query_weights = np.random.default_rng(3).uniform(0, 3, (2, 2 * group, 5)).astype(np.float32)
        stats = kw.attention_stats(query, key, value, query_weights=query_weights)
        assert stats.key_mass.shape == (2, 2 * group, 17)
        np.testing.assert_allclose(stats.key_mass.sum(axis=2), query_weights.sum(axis=2), rtol=1e-5)
        expected = np.einsum("bhqn,bhq->bhn", compute_weights(query, key).astype(float), query_weights)
        np.testing.assert_allclose(stats.key_mass, expected, rtol=1e-5, atol=1e-5)


def test_segment_mass_is_summed_by_bounds_and_by_ids(target: str) -> None:
    query, key, value = draw_normal(1, 2, 3, 8), draw_normal(1, 2, 7, 8, seed=1), draw_normal(1, 2, 7, 3, seed=2)
    share = compute_weights(query, key)
    by_bounds = kw.attention_stats(query, key, value, segment_bounds=[1, 3, 6]).segment_mass
    np.testing.assert_allclose(by_bounds[..., 0], share[..., 1:3].sum(axis=3), **CLOSE)
    np.testing.assert_allclose(by_bounds[..., 1], share[..., 3:6].sum(axis=3), **CLOSE)
    by_ids = kw.attention_stats(query, key, value, segment_ids=[2, 0, 0, -1, 2, 2, 0]).segment_mass
    assert by_ids.shape == (1, 2, 3, 3)
    np.testing.assert_allclose(by_ids[..., 0], share[..., [1, 2, 6]].sum(axis=3), **CLOSE)
    assert not by_ids[..., 1].any()
    np.testing.assert_allclose(by_ids[..., 2], share[..., [0, 4, 5]].sum(axis=3), **CLOSE)
    assert kw.attention_stats(query, key, value).segment_mass is None


def test_top_keys_are_sorted_by_weight_and_ties_by_key(target: str) -> None:
    # Whole numbers: every score is exact, so ties are ties in any order of summation.
    strength = np.array([1, 3, 2, 3, 0, 2, 3, 1, 1, 2] * 40, np.float32)
    key = np.zeros((1, 1, 400, 4), np.float32)
    key[0, 0, :, 1] = strength
    query = np.zeros((1, 1, 2, 4), np.float32)
    query[0, 0, :, 1] = [2, -2]
    stats = kw.attention_stats(query, key, key, scale=1.0, top_k=130)
    order = np.argsort(-strength, kind="stable")[:130], np.argsort(strength, kind="stable")[:130]
    np.testing.assert_array_equal(stats.top_keys[0, 0], order)
    assert (np.diff(stats.top_weights, axis=3) <= 0).all()
    np.testing.assert_allclose(stats.top_mass, stats.top_weights.sum(axis=3), rtol=1e-6)


def test_top_k_above_the_number_of_keys_is_padded(target: str) -> None:
    query, key = draw_normal(1, 1, 2, 4), draw_normal(1, 1, 3, 4, seed=1)
    stats = kw.attention_stats(query, key, key, top_k=6, mask=kw.Mask(causal=True))
    assert (np.sort(stats.top_keys[0, 0, 0])[:5] == [-1, -1, -1, -1, 0]).all()
    assert (stats.top_keys[0, 0, 1, 3:] == -1).all()
    assert not stats.top_weights[0, 0, 1, 3:].any()
    np.testing.assert_allclose(stats.top_mass, 1, **CLOSE)
    nothing = kw.attention_stats(query, key, key, top_k=0)
    assert nothing.top_keys.shape == (1, 1, 2, 0)
    assert not nothing.top_mass.any()


def test_scores_far_apart_do_not_overflow(target: str) -> None:
    key = np.array([[3000.0], [2999.0], [-3000.0]], np.float32)[None, None]
    value = np.array([[1.0], [2.0], [3.0]], np.float32)[None, None]
    stats = kw.attention_stats(np.ones((1, 1, 1, 1), np.float32), key, value, top_k=3)
    share = 1 / (1 + math.exp(-1))
    np.testing.assert_allclose(stats.output.item(), share + 2 * (1 - share), rtol=1e-6)
    np.testing.assert_allclose(stats.lse.item(), 3000 - math.log(share), rtol=1e-6)
    assert stats.top_keys.ravel().tolist() == [0, 1, 2]
    assert stats.top_weights.ravel()[2] == 0


# Visibility, key by key


def is_visible(mask: kw.Mask, item: int, query: int, key: int, queries: int, keys: int) -> bool:
    """Return whether a mask's fields let a query see a key."""
    length = keys if mask.lengths is None else int(mask.lengths[item])
    start = 0 if mask.starts is None else int(mask.starts[item])
    own = length - queries + query
    if not start <= key < length or (mask.causal and key > own):
        return False
    if mask.window is not None and key >= start + mask.keep_first:
        left, right = mask.window
        if (left is not None and key < own - left) or (right is not None and key > own + right):
            return False
    if mask.documents is not None:
        return 0 <= own < mask.documents.shape[1] and mask.documents[item, key] == mask.documents[item, own]
    return True


@pytest.mark.parametrize("kind", [kind for kind in MASKS if "allowed" not in kind and kind != "none"])
@pytest.mark.parametrize(("queries", "keys"), [(1, 9), (5, 9), (9, 9), (12, 9)])
def test_visible_keys_follow_the_fields_of_the_mask(kind: str, queries: int, keys: int) -> None:
    for seed in range(5):
        problem = Case(mask=kind, queries=queries, keys=keys, group=1, seed=seed).problem()
        mask = Case(mask=kind, queries=queries, keys=keys, group=1, seed=seed).arguments()["mask"]
        allowed = np.broadcast_to(True if mask.allowed is None else mask.allowed, find_visible_keys(problem).shape)
        for item, head, query, key in np.ndindex(find_visible_keys(problem).shape):
            expected = is_visible(mask, item, query, key, queries, keys) and allowed[item, head, query, key]
            assert find_visible_keys(problem)[item, head, query, key] == expected


def draw_pattern(queries: int, keys: int, **fields: object) -> list[str]:
    """Draw the visible keys, one string per query."""
    query, key = np.zeros((1, 1, queries, 1), np.float32), np.zeros((1, 1, keys, 1), np.float32)
    seen = compute_weights(query, key, mask=kw.Mask(**fields))[0, 0] > 0  # type: ignore[arg-type]
    return ["".join("x" if sees else "." for sees in row) for row in seen]


def test_masks_equal_patterns_drawn_by_hand(target: str) -> None:
    assert draw_pattern(3, 3, causal=True) == ["x..", "xx.", "xxx"]
    assert draw_pattern(2, 4, causal=True) == ["xxx.", "xxxx"], "lower-right alignment"
    assert draw_pattern(4, 2, causal=True) == ["..", "..", "x.", "xx"]
    assert draw_pattern(4, 4, causal=True, window=(1, None)) == ["x...", "xx..", ".xx.", "..xx"]
    assert draw_pattern(4, 4, window=(1, 0)) == ["x...", "xx..", ".xx.", "..xx"]
    assert draw_pattern(4, 4, window=(0, 1)) == ["xx..", ".xx.", "..xx", "...x"]
    assert draw_pattern(4, 4, window=(None, 0)) == ["x...", "xx..", "xxx.", "xxxx"]
    assert draw_pattern(4, 4, causal=True, window=(0, None), keep_first=1) == ["x...", "xx..", "x.x.", "x..x"]
    assert draw_pattern(2, 4, lengths=[3]) == ["xxx.", "xxx."]
    assert draw_pattern(2, 4, lengths=[3], causal=True) == ["xx..", "xxx."]
    assert draw_pattern(4, 4, starts=[2], causal=True) == ["....", "....", "..x.", "..xx"]
    assert draw_pattern(4, 5, starts=[1], causal=True, window=(0, 0), keep_first=1) == [
        ".x...",
        ".xx..",
        ".x.x.",
        ".x..x",
    ]
    assert draw_pattern(4, 4, documents=np.array([[7, 7, 3, 3]])) == ["xx..", "xx..", "..xx", "..xx"]
    assert draw_pattern(2, 4, documents=np.array([[7, 3, 3, 9]]), causal=True) == [".xx.", "...x"]
    assert draw_pattern(2, 4, documents=np.array([[7, 3, 3, 9]]), lengths=[3]) == [".xx.", ".xx."]
    assert draw_pattern(2, 3, allowed=np.array([[True, False, True]]), causal=True) == ["x..", "x.x"]


# An independent implementation: torch's own attention in float64


def list_oracle_cases() -> Iterator[Case]:
    kinds = itertools.cycle(("none", "per pair", "full", "hiding", "per head"))
    for number, mask in enumerate(MASKS):
        yield Case(
            "float32", queries=1 + number % 7, keys=33, group=1 + number % 3, head_dim=9, value_dim=5, mask=mask,
            bias=next(kinds), sinks=number % 2 == 0, peaky=number % 3 == 0, scale=(None, 0.4)[number % 2], seed=number,
        )  # fmt: skip


def attend_with_torch(problem: Problem) -> torch.Tensor:
    """Attend with torch in float64; a sink is one more key, of score `sink` and value 0."""
    query, key, value = (
        torch.from_numpy(numbers)
        for numbers in (problem.query.floats("float64"), problem.key_floats("float64"), problem.value_floats("float64"))
    )
    additive = torch.zeros(reference.find_visible_keys(problem).shape, dtype=torch.float64)
    if problem.bias is not None:
        additive += torch.from_numpy(problem.bias.floats("float64"))
    additive.masked_fill_(~torch.from_numpy(find_visible_keys(problem)), -torch.inf)
    if problem.sinks is not None:
        column = torch.from_numpy(problem.sinks)[None, :, None, None].expand(*additive.shape[:3], 1)
        additive = torch.cat([additive, column], dim=3)
        key, value = (torch.nn.functional.pad(tensor, (0, 0, 0, 1)) for tensor in (key, value))
    return torch.nn.functional.scaled_dot_product_attention(
        query, key.nan_to_num(0, 0, 0), value.nan_to_num(0, 0, 0), additive, scale=problem.scale, enable_gqa=True
    )


@pytest.mark.parametrize("case", list(list_oracle_cases()), ids=lambda case: case.mask)
def test_definition_agrees_with_torch_in_float64(case: Case) -> None:
    problem = case.problem()
    result = reference.evaluate(problem)
    np.testing.assert_allclose(result.output, attend_with_torch(problem).numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("case", list(list_oracle_cases()), ids=lambda case: case.mask)
def test_statistics_equal_those_of_torch_weights(case: Case) -> None:
    problem = case.problem()
    stats = reference.evaluate(problem)
    arguments = case.arguments()
    unit = torch.eye(case.keys, dtype=torch.float32).expand(case.batch, case.key_heads, case.keys, case.keys)
    share = attend_with_torch(make_problem(**{**arguments, "value": unit})).numpy()
    np.testing.assert_allclose(stats.key_mass, share.sum(axis=2), rtol=1e-10, atol=1e-12)
    heaviest = -np.sort(-share, axis=3)[..., : case.top_k]
    np.testing.assert_allclose(stats.top_weights, heaviest, rtol=1e-10, atol=1e-14)
    positive = np.where(share > 0, share, 1)
    np.testing.assert_allclose(stats.entropy, -(positive * np.log(positive)).sum(axis=3), rtol=1e-9, atol=1e-12)


def test_float64_is_computed_in_float64() -> None:
    query, key, value = torch.randn(3, 1, 2, 5, 16, dtype=torch.float64, generator=torch.manual_seed(0))
    with kw.using("reference"):
        actual = kw.attend(query, key, value)
    assert actual.dtype == torch.float64
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-14)
