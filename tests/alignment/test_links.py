"""Features, scores, thresholds and symmetrisations of links."""

from __future__ import annotations

import numpy as np
import pytest

from keywise.alignment.heads import LinkRule
from keywise.alignment.links import (
    compute_context,
    compute_features,
    format_pharaoh,
    list_links,
    measure_distance,
    normalise_rows,
    score_words,
    select_links,
    symmetrise,
)
from keywise.errors import OptionError


def draw(heads, rows, columns, seed=0):
    return np.random.default_rng(seed).uniform(size=(heads, rows, columns)).astype(np.float32)


def test_links_are_above_a_threshold_or_largest_in_row_and_column():
    scores = np.array([[0.9, 0.45, 0.0], [0.3, 0.1, 0.2], [0.0, 0.0, 0.25]], np.float32)
    assert list_links(select_links(scores, 0.4, 0.2)) == ((0, 0), (1, 0), (2, 2))
    assert list_links(select_links(scores, 0.95, 0.95)) == ()


def test_score_of_one_direction_is_the_mean_of_normalised_rows():
    weights = draw(3, 4, 5)
    expected = np.mean([head / (head.sum(1, keepdims=True) + 1e-3) for head in weights], axis=0)
    np.testing.assert_allclose(score_words(weights, None, LinkRule()), expected, rtol=1e-5)


def test_score_of_both_directions_is_their_geometric_mean():
    forward, backward = draw(2, 4, 5), draw(3, 5, 4, seed=1)
    one, other = normalise_rows(forward).mean(0), normalise_rows(backward).mean(0).T
    np.testing.assert_allclose(score_words(forward, backward, LinkRule()), np.sqrt(one * other), rtol=1e-5)
    np.testing.assert_allclose(score_words(None, backward, LinkRule()), other, rtol=1e-5)


def test_coefficients_give_probabilities():
    weights = draw(2, 3, 4)
    features = compute_features(weights, None)
    assert features.shape == (7, 3, 4)
    coefficients = tuple(np.random.default_rng(3).normal(size=7).tolist())
    log_odds = np.tensordot(coefficients, features, 1) + 0.3
    first = 1 / (1 + np.exp(-log_odds))
    rule = LinkRule(coefficients=coefficients, bias=0.3)
    np.testing.assert_allclose(score_words(weights, None, rule), first, rtol=1e-4)
    more = tuple(np.random.default_rng(4).normal(size=16).tolist())
    both = np.concatenate([features, compute_context(first.astype(np.float32))])
    second = 1 / (1 + np.exp(-(np.tensordot(more, both, 1) - 0.2)))
    rule = LinkRule(coefficients=coefficients, bias=0.3, context_coefficients=more, context_bias=-0.2)
    np.testing.assert_allclose(score_words(weights, None, rule), second, rtol=1e-3, atol=1e-5)


def test_features_of_the_backward_direction_are_transposed():
    backward = draw(2, 4, 3)
    features = compute_features(None, backward)
    np.testing.assert_allclose(features[:2], np.sqrt(normalise_rows(backward)).swapaxes(1, 2), rtol=1e-5)
    np.testing.assert_array_equal(features[-1], measure_distance(3, 4))


def test_other_numbers_of_coefficients_are_refused():
    with pytest.raises(OptionError, match="keywise tune"):
        score_words(draw(2, 3, 4), None, LinkRule(coefficients=(1.0, 2.0)))


def test_context_holds_neighbours_and_rivals():
    scores = np.arange(12, dtype=np.float32).reshape(3, 4)
    context = compute_context(scores)
    assert context[0, 1, 1] == (scores[0, 0] + scores[2, 2]) / 2
    assert context[1, 1, 1] == (scores[0, 2] + scores[2, 0]) / 2
    assert context[2, 1, 1] == (scores[0, 1] + scores[2, 1]) / 2
    assert context[3, 1, 1] == (scores[1, 0] + scores[1, 2]) / 2
    np.testing.assert_allclose(context[4, 1, 1], 5 / 9, rtol=1e-3)
    np.testing.assert_allclose(context[5, 1, 1], 5 / 7, rtol=1e-3)
    assert context[6, 1, 1] == scores[[0, 2], 1].sum()
    assert context[7, 1, 1] == scores[1, [0, 2, 3]].sum()
    np.testing.assert_array_equal(context[8], scores)


def make_links(*cells):
    links = np.zeros((4, 4), bool)
    for target, source in cells:
        links[target, source] = True
    return links


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("intersection", {(0, 0), (1, 1)}),
        ("union", {(0, 0), (1, 1), (1, 2), (2, 2), (3, 0), (0, 3)}),
        # (1, 2) joins beside (1, 1), (2, 2) and (0, 3) beside it; (3, 0) touches nothing.
        ("grow-diag", {(0, 0), (1, 1), (1, 2), (2, 2), (0, 3)}),
        # The target word of (3, 0) is free.
        ("grow-diag-final", {(0, 0), (1, 1), (1, 2), (2, 2), (3, 0), (0, 3)}),
    ],
)
def test_symmetrisations(method, expected):
    forward = make_links((0, 0), (1, 1), (1, 2), (3, 0))
    backward = make_links((0, 0), (1, 1), (2, 2), (0, 3))
    found = {(int(target), int(source)) for target, source in np.argwhere(symmetrise(forward, backward, method))}
    assert found == expected


def test_unknown_symmetrisation_is_refused():
    with pytest.raises(OptionError):
        symmetrise(make_links(), make_links(), "score")


def test_pharaoh_format():
    assert format_pharaoh([(0, 1), (12, 3)]) == "0-1 12-3"
    assert format_pharaoh([]) == ""
