"""Random problems by hypothesis: the error rule on every target, and properties of attention."""

from __future__ import annotations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keywise as kw
from tests.support.cases import BIASES, DTYPES, LAYOUTS, MASKS, SEGMENTS, Case
from tests.support.judging import as_float64, check_case

# The seed is fixed: a failure is the code's, never the day's.
FIXED = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

CASES = st.builds(
    Case,
    dtype=st.sampled_from(DTYPES),
    batch=st.integers(1, 3),
    key_heads=st.integers(1, 3),
    group=st.integers(1, 5),
    queries=st.integers(1, 40),
    keys=st.integers(1, 90),
    head_dim=st.integers(1, 70),
    value_dim=st.integers(0, 70),
    layout=st.sampled_from(LAYOUTS),
    mask=st.sampled_from(MASKS),
    bias=st.sampled_from(BIASES),
    scale=st.none() | st.floats(0.05, 1) | st.floats(-1, -0.05) | st.just(0.0),
    softcap=st.none() | st.floats(0.5, 50),
    sinks=st.booleans(),
    peaky=st.booleans(),
    top_k=st.integers(0, 12),
    segment_kind=st.sampled_from(SEGMENTS),
    query_weights=st.booleans(),
    seed=st.integers(0, 2**32),
)


@FIXED
@given(case=CASES)
def test_errors_of_random_problems_are_at_most_twice_plain_ones(case: Case) -> None:
    for target in kw.targets():
        with kw.using(target):
            check_case(case)


SMALL = st.builds(
    Case,
    queries=st.integers(1, 9),
    keys=st.integers(1, 40),
    head_dim=st.integers(1, 20),
    peaky=st.booleans(),
    seed=st.integers(0, 2**32),
)


@settings(FIXED, max_examples=25)
@given(case=SMALL, shift=st.floats(-20, 20))
def test_constant_bias_changes_only_lse(case: Case, shift: float) -> None:
    for target in kw.targets():
        with kw.using(target):
            plain = kw.attention_stats(**case.arguments())
            moved = kw.attention_stats(**{**case.arguments(), "bias": np.full((1,), shift, np.float32)})
        np.testing.assert_allclose(as_float64(moved.output), as_float64(plain.output), atol=3e-5)
        np.testing.assert_allclose(as_float64(moved.entropy), as_float64(plain.entropy), atol=1e-4)
        np.testing.assert_allclose(as_float64(moved.lse), as_float64(plain.lse) + np.float32(shift), atol=3e-5)


@settings(FIXED, max_examples=25)
@given(case=SMALL, data=st.data())
def test_permuted_keys_leave_the_output_unchanged(case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(case.keys)))
    arguments = case.arguments()
    shuffled = {**arguments, "key": arguments["key"][:, :, order], "value": arguments["value"][:, :, order]}
    for target in kw.targets():
        with kw.using(target):
            plain, moved = kw.attention_stats(**arguments), kw.attention_stats(**shuffled)
        np.testing.assert_allclose(as_float64(moved.output), as_float64(plain.output), atol=3e-5)
        np.testing.assert_allclose(as_float64(moved.key_mass), as_float64(plain.key_mass)[:, :, order], atol=1e-4)
        np.testing.assert_allclose(as_float64(moved.top_weights), as_float64(plain.top_weights), atol=3e-5)


@settings(FIXED, max_examples=25)
@given(case=SMALL)
def test_outputs_lie_between_the_smallest_and_largest_values(case: Case) -> None:
    arguments = case.arguments()
    value = as_float64(arguments["value"]).repeat(case.group, axis=1)
    for target in kw.targets():
        with kw.using(target):
            output = as_float64(kw.attend(**arguments))
        slack = 1e-5 * np.abs(value).max()
        assert (output <= value.max(axis=2, keepdims=True) + slack).all()
        assert (output >= value.min(axis=2, keepdims=True) - slack).all()
