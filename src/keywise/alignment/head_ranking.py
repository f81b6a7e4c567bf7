"""Heads ranked without labels: by agreement with the other direction, or with the diagonal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.alignment.heads import BOTH, FORWARD, AlignmentHeads, LinkRule
from keywise.alignment.links import Matrix, measure_distance, normalise_rows

CHOSEN_HEADS: Final = 4
# Translations keep near the diagonal: at a fifth of the length from it, the prior is a twenty-fifth.
DIAGONAL_DECAY: Final = 16.0
_UNTUNED_RULE: Final = LinkRule(threshold=0.5, mutual_threshold=0.05)


def rank_heads(
    pairs: Sequence[tuple[Matrix, Matrix | None]], all_heads: AlignmentHeads, count: int = CHOSEN_HEADS
) -> AlignmentHeads:
    """Return the heads that probably align words, ranked without labels.

    With both directions, a head is good if what it links is linked back by some head of the other direction: the
    largest mean product of their weights. With one direction, it is good if its weights are near the diagonal.

    Parameters
    ----------
    pairs : sequence of (forward, backward)
        Weights of all heads for some pairs; see `keywise.alignment.align.PairReader.read`.
    all_heads : AlignmentHeads
        The heads of the weights, in order.
    count : int
        Heads to return for each direction.
    """
    rules = {FORWARD: _UNTUNED_RULE, BOTH: _UNTUNED_RULE}
    if pairs[0][1] is None:
        scores = np.mean([_score_nearness(forward) for forward, _ in pairs], axis=0)
        return AlignmentHeads(_choose(all_heads.forward, scores, count), rules=rules)
    agreement = np.mean([_measure_agreement(forward, backward) for forward, backward in pairs], axis=0)
    return AlignmentHeads(
        _choose(all_heads.forward, agreement.max(1), count),
        _choose(all_heads.backward, agreement.max(0), count),
        rules=rules,
    )


def _choose(heads: Sequence[Any], scores: NDArray[np.floating[Any]], count: int) -> tuple[Any, ...]:
    best = np.argsort(-scores, kind="stable")[:count]
    return tuple(heads[number] for number in best)


def _score_nearness(forward: Matrix) -> NDArray[np.floating[Any]]:
    """Return for each head the mean of a prior around the diagonal, beside what even weights have."""
    targets, sources = forward.shape[1:]
    prior = np.power(2.0, -DIAGONAL_DECAY * measure_distance(targets, sources))
    shares = normalise_rows(forward)
    return np.asarray(((shares * prior).sum(2) / prior.mean(1)).mean(1))


def _measure_agreement(forward: Matrix, backward: Matrix | None) -> NDArray[np.floating[Any]]:
    """Return the mean product of the weights of each two heads: [forward heads, backward heads]."""
    if backward is None:
        raise ValueError("every pair must have been read in both directions")
    targets = forward.shape[1]
    one = normalise_rows(forward).reshape(len(forward), -1)
    other = normalise_rows(backward).swapaxes(1, 2).reshape(len(backward), -1)
    return np.asarray(one @ other.T / targets)
