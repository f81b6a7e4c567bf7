"""The choice of alignment heads and of their link rules, from pairs with hand-made links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.alignment.heads import BACKWARD, BOTH, FORWARD, AlignmentHeads, LinkRule
from keywise.alignment.links import (
    Matrix,
    compute_context,
    compute_features,
    normalise_rows,
    score_words,
    select_links,
)
from keywise.alignment.pairs import GoldLinks
from keywise.errors import OptionError

CHOSEN_HEADS: Final = 6
CANDIDATE_HEADS: Final = 24
FOLDS: Final = 4
MIN_PAIRS: Final = 8
# Thresholds while heads are chosen; those of the result are fitted afterwards.
_SELECTION_THRESHOLDS: Final = ((0.3, 0.1), (0.4, 0.1), (0.4, 0.2), (0.5, 0.2))
_THRESHOLDS: Final = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7)
_MUTUAL_THRESHOLDS: Final = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
_PENALTY: Final = 1e-3


@dataclass(frozen=True, eq=False)
class GoldPair:
    """The weights of all heads for a pair, and its hand-made links.

    Attributes
    ----------
    forward
        float array [heads, target words, source words].
    backward
        float array [heads, source words, target words]; None where one direction was read.
    sure, possible
        bool arrays [target words, source words]; sure links are possible too.
    """

    forward: Matrix
    backward: Matrix | None
    sure: NDArray[np.bool_]
    possible: NDArray[np.bool_]


@dataclass(frozen=True)
class TuningResult:
    """Chosen heads, and how good such a choice is on other pairs.

    Attributes
    ----------
    heads
        Chosen on all pairs.
    error_rates
        The alignment error rate of each direction on pairs that heads and rules were not chosen on, from 0 to 1:
        every pair was left out once, a quarter of them at a time.
    """

    heads: AlignmentHeads
    error_rates: dict[str, float]


def make_gold_pair(forward: Matrix, backward: Matrix | None, gold: GoldLinks) -> GoldPair:
    """Return a pair for `tune_heads`.

    Parameters
    ----------
    forward, backward : float32 arrays
        Weights of all heads; from `keywise.alignment.align.PairReader.read`.
    gold : GoldLinks
        The links.

    Raises
    ------
    OptionError
        A link names a word that the pair does not have.
    """
    shape = forward.shape[1:]
    marks = np.zeros((2, *shape), np.bool_)
    for number, links in enumerate((gold.sure, gold.possible)):
        for source, target in links:
            if target >= shape[0] or source >= shape[1]:
                rule = f"must have links of the pair's {shape[1]} source and {shape[0]} target words"
                raise OptionError("gold", rule, got=(source + 1, target + 1))
            marks[number, target, source] = True
    # Half the memory: all heads of all pairs are kept.
    halves = [None if weights is None else weights.astype(np.float16) for weights in (forward, backward)]
    return GoldPair(halves[0], halves[1], marks[0], marks[1])  # type: ignore[arg-type]  # forward is no None


def compute_error_rate(links: Sequence[NDArray[np.bool_]], pairs: Sequence[GoldPair]) -> float:
    """Return the alignment error rate of links, from 0 to 1.

    Och and Ney, "A Systematic Comparison of Various Statistical Alignment Models" (2003).

    Parameters
    ----------
    links : sequence of bool arrays [target words, source words]
        The links of each pair.
    pairs : sequence of GoldPair
        The pairs.
    """
    hits = total = 0
    for proposed, pair in zip(links, pairs, strict=True):
        hits += int((proposed & pair.sure).sum() + (proposed & pair.possible).sum())
        total += int(proposed.sum() + pair.sure.sum())
    return 1 - hits / total if total else 0.0


def tune_heads(
    pairs: Sequence[GoldPair],
    all_heads: AlignmentHeads,
    *,
    tuned_on: str,
    progress: Callable[[int, int], None] | None = None,
) -> TuningResult:
    """Choose heads and fit link rules on pairs with hand-made links.

    Heads are chosen greedily for each direction by the error rate of their mean. The rule of each direction, and of
    both together, is a logistic regression with thresholds that minimise the error rate.

    Parameters
    ----------
    pairs : sequence of GoldPair
        The pairs.
    all_heads : AlignmentHeads
        The heads of the weights, in order.
    tuned_on : str
        Name of the data.
    progress : callable, optional
        Called with the number of fits done and of all.

    Raises
    ------
    OptionError
        There are fewer than eight pairs, or none has a sure link.
    """
    if len(pairs) < MIN_PAIRS or not any(pair.sure.any() for pair in pairs):
        raise OptionError("pairs", f"must have at least {MIN_PAIRS} pairs with sure links", got=len(pairs))
    links: dict[str, dict[int, NDArray[np.bool_]]] = {}
    for fold in range(FOLDS):
        training = [pair for number, pair in enumerate(pairs) if number % FOLDS != fold]
        heads = _fit(training, all_heads, tuned_on)
        for number in range(fold, len(pairs), FOLDS):
            for direction, found in _apply(heads, all_heads, pairs[number]).items():
                links.setdefault(direction, {})[number] = found
        if progress is not None:
            progress(fold + 1, FOLDS + 1)
    heads = _fit(pairs, all_heads, tuned_on)
    if progress is not None:
        progress(FOLDS + 1, FOLDS + 1)
    rates = {
        direction: compute_error_rate([found[number] for number in range(len(pairs))], pairs)
        for direction, found in links.items()
    }
    return TuningResult(heads, rates)


def _fit(pairs: Sequence[GoldPair], all_heads: AlignmentHeads, tuned_on: str) -> AlignmentHeads:
    chosen = {FORWARD: _choose_greedily(pairs, [pair.forward for pair in pairs])}
    if all_heads.backward:
        chosen[BACKWARD] = _choose_greedily(
            [GoldPair(pair.forward, None, pair.sure.T, pair.possible.T) for pair in pairs],
            [pair.backward for pair in pairs if pair.backward is not None],
        )
    rules = {FORWARD: _fit_rule(pairs, chosen[FORWARD], None)}
    if BACKWARD in chosen:
        rules[BACKWARD] = _fit_rule(pairs, None, chosen[BACKWARD])
        rules[BOTH] = _fit_rule(pairs, chosen[FORWARD], chosen[BACKWARD])
    return AlignmentHeads(
        forward=tuple(all_heads.forward[number] for number in chosen[FORWARD]),
        backward=tuple(all_heads.backward[number] for number in chosen.get(BACKWARD, [])),
        rules=rules,
        tuned_on=tuned_on,
    )


def _apply(heads: AlignmentHeads, all_heads: AlignmentHeads, pair: GoldPair) -> dict[str, NDArray[np.bool_]]:
    """Return the links of each direction of a pair."""
    forward = _select_heads(pair.forward, [all_heads.forward.index(head) for head in heads.forward])
    backward = _select_heads(pair.backward, [all_heads.backward.index(head) for head in heads.backward])
    weights = {FORWARD: (forward, None), BACKWARD: (None, backward), BOTH: (forward, backward)}
    links = {}
    for direction, rule in (heads.rules or {}).items():
        scores = score_words(*weights[direction], rule)
        links[direction] = select_links(scores, rule.threshold, rule.mutual_threshold)
    return links


def _select_heads(weights: Matrix | None, numbers: Sequence[int] | None) -> Any:
    return None if weights is None or numbers is None else weights[list(numbers)].astype(np.float32)


def _choose_greedily(pairs: Sequence[GoldPair], weights: Sequence[Matrix]) -> list[int]:
    """Choose heads one by one, each to make the error rate of their mean lowest.

    Parameters
    ----------
    pairs
        The gold links, oriented as the weights.
    weights
        Weights of all heads for each pair.
    """
    shares = [normalise_rows(each.astype(np.float32)) for each in weights]
    alone = [compute_error_rate(_link_best(shares, head), pairs) for head in range(len(shares[0]))]
    candidates = [int(head) for head in np.argsort(alone, kind="stable")[:CANDIDATE_HEADS]]
    chosen: list[int] = []
    sums = [np.zeros(each.shape[1:], np.float32) for each in shares]
    history = []
    while len(chosen) < min(CHOSEN_HEADS, len(candidates)):
        rates = {}
        for head in candidates:
            if head not in chosen:
                means = [(total + each[head]) / (len(chosen) + 1) for total, each in zip(sums, shares, strict=True)]
                rates[head] = min(_rate_thresholds(means, pairs, *limits) for limits in _SELECTION_THRESHOLDS)
        best = min(rates, key=lambda head: rates[head])
        chosen.append(best)
        history.append(rates[best])
        sums = [total + each[best] for total, each in zip(sums, shares, strict=True)]
    return chosen[: int(np.argmin(history)) + 1]


def _link_best(shares: Sequence[Matrix], head: int) -> list[NDArray[np.bool_]]:
    """Return for each pair the heaviest source word of every target word."""
    return [each[head] == each[head].max(1, keepdims=True) for each in shares]


def _rate_thresholds(
    scores: Sequence[Matrix], pairs: Sequence[GoldPair], threshold: float, mutual_threshold: float
) -> float:
    links = [select_links(each, threshold, mutual_threshold) for each in scores]
    return compute_error_rate(links, pairs)


def _fit_rule(pairs: Sequence[GoldPair], forward: Sequence[int] | None, backward: Sequence[int] | None) -> LinkRule:
    """Fit a logistic regression in two steps; the mean of the heads is kept where it is as good."""
    weights = [(_select_heads(pair.forward, forward), _select_heads(pair.backward, backward)) for pair in pairs]
    features = [compute_features(*each) for each in weights]
    coefficients, bias = _fit_logistic(features, pairs)
    first = LinkRule(coefficients=coefficients, bias=bias)
    both_steps = [
        np.concatenate([each, compute_context(score_words(*pair_weights, first))])
        for each, pair_weights in zip(features, weights, strict=True)
    ]
    context_coefficients, context_bias = _fit_logistic(both_steps, pairs)
    logistic = replace(first, context_coefficients=context_coefficients, context_bias=context_bias)
    fitted = [_fit_thresholds(rule, weights, pairs) for rule in (LinkRule(), logistic)]
    return min(fitted, key=lambda each: each[0])[1]


def _fit_thresholds(
    rule: LinkRule, weights: Sequence[tuple[Any, Any]], pairs: Sequence[GoldPair]
) -> tuple[float, LinkRule]:
    """Return the lowest error rate of a rule, and the rule with the thresholds that have it."""
    scores = [score_words(*each, rule) for each in weights]
    limits = [(one, other) for one in _THRESHOLDS for other in _MUTUAL_THRESHOLDS if other < one]
    rates = [_rate_thresholds(scores, pairs, *each) for each in limits]
    best = int(np.argmin(rates))
    return rates[best], replace(rule, threshold=limits[best][0], mutual_threshold=limits[best][1])


def _fit_logistic(
    features: Sequence[NDArray[np.float32]], pairs: Sequence[GoldPair]
) -> tuple[tuple[float, ...], float]:
    """Fit the probability of a sure link; links that are only possible do not count."""
    import torch

    sure = np.concatenate([pair.sure.ravel() for pair in pairs])
    possible = np.concatenate([pair.possible.ravel() for pair in pairs])
    counts = torch.from_numpy(sure | ~possible)
    x = torch.from_numpy(
        np.concatenate([each.reshape(len(each), -1) for each in features], axis=1).T.astype(np.float64)
    )
    mean, deviation = x.mean(0), x.std(0) + 1e-6
    standardised = ((x - mean) / deviation)[counts]
    outcome = torch.from_numpy(sure.astype(np.float64))[counts]
    coefficients = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([coefficients], max_iter=100, line_search_fn="strong_wolfe")

    def evaluate() -> Any:
        optimiser.zero_grad()
        log_odds = standardised @ coefficients[:-1] + coefficients[-1]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(log_odds, outcome)
        # Features that few pairs determine would otherwise have large coefficients of both signs.
        loss = loss + _PENALTY * (coefficients[:-1] ** 2).sum()
        loss.backward()
        return loss

    optimiser.step(evaluate)
    found = coefficients.detach()
    scaled = found[:-1] / deviation
    bias = found[-1] - (scaled * mean).sum()
    return tuple(round(float(number), 5) for number in scaled), round(float(bias), 5)
