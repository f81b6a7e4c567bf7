"""From the weights of words to links between them: features, scores, thresholds, and both directions together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.alignment.heads import LinkRule
from keywise.errors import OptionError

Link = tuple[int, int]
"""A source word and a target word, both counted from 0."""

Matrix = NDArray[np.float32]
"""[target words, source words]"""

SYMMETRISATIONS: Final = ("score", "intersection", "union", "grow-diag", "grow-diag-final")
_TINY: Final = 1e-3
_NEIGHBOURS: Final = ((-1, 0), (0, -1), (1, 0), (0, 1), (-1, -1), (-1, 1), (1, -1), (1, 1))


def normalise_rows(weights: Matrix) -> Matrix:
    """Return weights [..., T, S] of which those of each target word sum to about 1.

    The weights of a target word that attends to hardly any source word stay small.

    Parameters
    ----------
    weights : float32 array [..., target words, source words]
        Weights of target words on source words.
    """
    return np.asarray(weights / (weights.sum(-1, keepdims=True) + _TINY), np.float32)


def _normalise_columns(weights: Matrix) -> Matrix:
    return np.asarray(weights / (weights.sum(-2, keepdims=True) + _TINY), np.float32)


def compute_features(forward: Matrix | None, backward: Matrix | None) -> NDArray[np.float32]:
    """Return the features of each pair of words.

    These are, for each direction that was read and with square roots: the weights of each head, the same as shares of
    what the source word receives, and both of the mean over the heads; and the distance from the diagonal.

    Parameters
    ----------
    forward : float32 array [heads, target words, source words], optional
        Weights of the target's words on the source's.
    backward : float32 array [heads, source words, target words], optional
        Weights of the source's words on the target's.

    Returns
    -------
    float32 array [features, target words, source words]

    Examples
    --------
    >>> import numpy as np
    >>> compute_features(np.ones((2, 3, 4), np.float32), None).shape
    (7, 3, 4)
    """
    parts: list[Any] = []
    for weights, is_backward in ((forward, False), (backward, True)):
        if weights is None:
            continue
        rows = normalise_rows(weights)
        mean = rows.mean(0, keepdims=True)
        of_direction = np.sqrt(
            np.concatenate([rows, _normalise_columns(rows), mean, normalise_rows(_normalise_columns(mean))])
        )
        parts.append(of_direction.swapaxes(-1, -2) if is_backward else of_direction)
    targets, sources = parts[0].shape[1:]
    parts.append(measure_distance(targets, sources)[None])
    return np.concatenate(parts).astype(np.float32)


def measure_distance(targets: int, sources: int) -> Matrix:
    """Return the distance of each pair of words from the diagonal, as a share of the lengths.

    Parameters
    ----------
    targets, sources : int
        Numbers of words.
    """
    target = (np.arange(targets) + 0.5) / targets
    source = (np.arange(sources) + 0.5) / sources
    return np.abs(target[:, None] - source).astype(np.float32)


def compute_context(scores: Matrix) -> NDArray[np.float32]:
    """Return features of each pair of words from the scores around it.

    These are the mean scores of the two neighbours on both diagonals, in the row and in the column; the score beside
    the largest of its column and of its row; the sums of the others in the column and in the row; and the score itself.

    Parameters
    ----------
    scores : float32 array [target words, source words]
        Scores.

    Returns
    -------
    float32 array [9, target words, source words]

    Examples
    --------
    >>> import numpy as np
    >>> compute_context(np.eye(3, dtype=np.float32))[0].diagonal().tolist()
    [0.5, 1.0, 0.5]
    """
    padded = np.pad(scores, 1)
    neighbours = [
        padded[:-2, :-2] + padded[2:, 2:],
        padded[:-2, 2:] + padded[2:, :-2],
        padded[:-2, 1:-1] + padded[2:, 1:-1],
        padded[1:-1, :-2] + padded[1:-1, 2:],
    ]
    rivals = [scores / (scores.max(axis, keepdims=True) + _TINY) for axis in (0, 1)]
    rivals += [scores.sum(axis, keepdims=True) - scores for axis in (0, 1)]
    return np.stack([*(each / 2 for each in neighbours), *rivals, scores]).astype(np.float32)


def score_words(forward: Matrix | None, backward: Matrix | None, rule: LinkRule) -> Matrix:
    """Return the score of each pair of words.

    Parameters
    ----------
    forward, backward : float32 arrays, optional
        As in `compute_features`; at least one.
    rule : LinkRule
        With coefficients, the score is a probability; without, the mean of the normalised weights: the arithmetic mean
        of the heads, and the geometric mean of the two directions.

    Returns
    -------
    float32 array [target words, source words]

    Raises
    ------
    OptionError
        The rule has another number of coefficients than there are features.
    """
    if rule.coefficients:
        features = compute_features(forward, backward)
        scores = _apply_logistic(features, rule.coefficients, rule.bias)
        if rule.context_coefficients:
            features = np.concatenate([features, compute_context(scores)])
            scores = _apply_logistic(features, rule.context_coefficients, rule.context_bias)
        return scores
    means = []
    if forward is not None:
        means.append(_average_heads(forward))
    if backward is not None:
        means.append(_average_heads(backward).T)
    return np.asarray(means[0] if len(means) == 1 else np.sqrt(means[0] * means[1]), np.float32)


def _average_heads(weights: Matrix) -> Matrix:
    """Return the mean of the normalised heads, without a copy of all of them."""
    total = np.zeros(weights.shape[1:], np.float32)
    for head in weights:
        total += normalise_rows(head)
    return np.asarray(total / len(weights), np.float32)


def _apply_logistic(features: NDArray[np.float32], coefficients: Sequence[float], bias: float) -> Matrix:
    if len(coefficients) != len(features):
        raise OptionError(
            "heads",
            f"must have {len(features)} coefficients for their features",
            got=len(coefficients),
            remedy="create them again with `keywise tune --alignments`",
        )
    log_odds = np.tensordot(np.array(coefficients), features, 1) + bias
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * log_odds), np.float32)


def select_links(scores: Matrix, threshold: float, mutual_threshold: float) -> NDArray[np.bool_]:
    """Return which pairs of words are links.

    Parameters
    ----------
    scores : float array [target words, source words]
        Scores.
    threshold : float
        A score above this is a link.
    mutual_threshold : float
        So is a score above this that is the largest of its row and of its column.

    Examples
    --------
    >>> import numpy as np
    >>> select_links(np.array([[0.9, 0.3], [0.1, 0.35]]), 0.4, 0.2).tolist()
    [[True, False], [False, True]]
    """
    is_largest = (scores == scores.max(0, keepdims=True)) & (scores == scores.max(1, keepdims=True))
    return np.asarray((scores > threshold) | (is_largest & (scores > mutual_threshold)))


def symmetrise(forward: NDArray[np.bool_], backward: NDArray[np.bool_], method: str) -> NDArray[np.bool_]:
    """Return the links of two directions as those of one.

    Koehn, Och and Marcu, "Statistical phrase-based translation" (2003), section 4.4.

    Parameters
    ----------
    forward, backward : bool arrays [target words, source words]
        The links of each direction.
    method : str
        ``"intersection"``, ``"union"``, ``"grow-diag"`` or ``"grow-diag-final"``.

    Raises
    ------
    OptionError
        There is no such method.

    Examples
    --------
    >>> import numpy as np
    >>> one, other = np.eye(2, dtype=bool), np.array([[True, True], [False, False]])
    >>> symmetrise(one, other, "grow-diag").tolist()
    [[True, True], [False, True]]
    """
    if method not in SYMMETRISATIONS[1:]:
        raise OptionError("symmetrise", f"must be one of {', '.join(SYMMETRISATIONS)}", got=method)
    if method == "union":
        return forward | backward
    links = forward & backward
    if method == "intersection":
        return links
    union = forward | backward
    links = _grow(links, union)
    if method == "grow-diag-final":
        for target, source in np.argwhere(union & ~links):
            if not (links[target].any() and links[:, source].any()):
                links[target, source] = True
    return links


def _grow(links: NDArray[np.bool_], union: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add links beside those that exist, as long as one of the two words has none."""
    grown = links.copy()
    pending = [(int(target), int(source)) for target, source in np.argwhere(links)]
    while pending:
        target, source = pending.pop(0)
        for down, right in _NEIGHBOURS:
            row, column = target + down, source + right
            if not (0 <= row < grown.shape[0] and 0 <= column < grown.shape[1]):
                continue
            is_free = not (grown[row].any() and grown[:, column].any())
            if union[row, column] and not grown[row, column] and is_free:
                grown[row, column] = True
                pending.append((row, column))
    return grown


def list_links(links: NDArray[np.bool_]) -> tuple[Link, ...]:
    """Return links as pairs of a source word and a target word, in order.

    Parameters
    ----------
    links : bool array [target words, source words]
        The links.
    """
    return tuple((int(source), int(target)) for source, target in np.argwhere(links.T))


def format_pharaoh(links: Sequence[Link]) -> str:
    """Return links as ``i-j`` separated by spaces, source word first, both from 0.

    Parameters
    ----------
    links : sequence of (int, int)
        The links.

    Examples
    --------
    >>> format_pharaoh([(0, 0), (2, 1)])
    '0-0 2-1'
    """
    return " ".join(f"{source}-{target}" for source, target in links)
