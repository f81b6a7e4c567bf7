"""Times of words from the rows of alignment heads and from the energy of the sound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.alignment.audio import SAMPLING_RATE_HERTZ, Samples
from keywise.alignment.spoken_words import SpokenWord
from keywise.alignment.transcript import TimedWord
from keywise.util.time_warping import filter_median, warp_time

FRAME_SECONDS: Final = 0.02
"""Length of an encoder frame."""

MEDIAN_FRAMES: Final = 3

_STEP_SECONDS: Final = 0.01
_STEP_SAMPLES: Final = SAMPLING_RATE_HERTZ // 100
_ENERGY_SAMPLES: Final = SAMPLING_RATE_HERTZ // 40
_FLOOR: Final = 1e-9
_PAUSE_DECIBELS: Final = 35.0
"""Sound that is so much weaker than the loudest is a pause."""
_MIN_PAUSE_SECONDS: Final = 0.06
_PAUSE_DISTANCE_SECONDS: Final = 0.15
_CHANGE_DISTANCE_SECONDS: Final = 0.03
_MIN_WORD_SECONDS: Final = 0.02
_MAX_CHANGE_DECIBELS: Final = 20.0
_CANDIDATE_SECONDS: Final = np.linspace(-0.2, 0.2, 41)
"""Latenesses that are compared."""
# Weight of the assumption that heads are on time, as decibels per square second of a word.
_PUNCTUALITY: Final = 200.0
_ASSUMED_WORDS: Final = 10

Energies = NDArray[np.float64]


class Lateness:
    """How much later than a sound the alignment heads attend to it.

    It differs by model: the energy of the sound changes most at the edges of words, so the lateness is the shift of all
    edges at which these changes are largest.

    Parameters
    ----------
    seconds : float, optional
        The lateness, where it is known; negative if the heads are early.

    Examples
    --------
    >>> from keywise.alignment.word_times import Lateness
    >>> Lateness(0.08).seconds, Lateness().seconds
    (0.08, 0.0)
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._known = seconds
        self._scores = -_PUNCTUALITY * _ASSUMED_WORDS * _CANDIDATE_SECONDS**2

    @property
    def seconds(self) -> float:
        """The lateness, from all edges so far."""
        if self._known is not None:
            return self._known
        return float(_CANDIDATE_SECONDS[int(self._scores.argmax())])

    def add(self, edges: NDArray[np.float64], energies: Energies) -> None:
        """Count the edges of words in.

        Parameters
        ----------
        edges : float64 array [edges]
            Seconds at which words begin by the heads.
        energies : float64 array
            From `measure_energy`.
        """
        floor = np.percentile(energies, 95) - _PAUSE_DECIBELS
        changes = np.abs(np.diff(np.maximum(energies, floor), n=1, prepend=floor, append=floor))
        changes = np.minimum(changes[1:] + changes[:-1], _MAX_CHANGE_DECIBELS)
        smooth = np.convolve(changes, np.full(5, 0.2), "same")
        steps = np.rint((edges[:, None] - _CANDIDATE_SECONDS) / _STEP_SECONDS).astype(int)
        self._scores += smooth[np.clip(steps, 0, smooth.size - 1)].sum(0)


def time_words(
    weights: NDArray[np.float32], words: Sequence[SpokenWord], samples: Samples, lateness: Lateness
) -> list[TimedWord]:
    """Return the times of words.

    The cheapest monotonic path through the mean weights of the heads has the frames of each token. Edges of words are
    then moved to a pause beside them, or to the largest change of energy within 30 ms.

    Parameters
    ----------
    weights : float32 array [heads, tokens + 1, frames]
        The row that predicts each token, and the row of the last token, which predicts the end.
    words : sequence of SpokenWord
        The words.
    samples : float32 array [samples]
        The sound.
    lateness : Lateness
        That of the heads; the edges of this sound are counted in.

    Returns
    -------
    list of TimedWord
        Seconds from the beginning of the sound.
    """
    if not words:
        return []
    duration = samples.size / SAMPLING_RATE_HERTZ
    energies = measure_energy(samples)
    token_starts = _find_token_starts(weights)
    lateness.add(np.array([token_starts[word.first] for word in words[1:]]), energies)
    edges = np.clip(token_starts - lateness.seconds, 0.0, duration)
    starts = np.array([edges[word.first] for word in words])
    ends = np.array([edges[word.last] for word in words])
    ends[-1] = duration
    _move_edges(starts, ends, energies, duration)
    timed = []
    for word, start, end in zip(words, starts, ends, strict=True):
        rows = weights[:, word.first : word.last]
        confidence = _measure_confidence(rows, float(start) + lateness.seconds, float(end) + lateness.seconds)
        timed.append(TimedWord(word.text.strip(), float(start), float(end), confidence))
    return timed


def measure_energy(samples: Samples) -> Energies:
    """Return the energy around every 10 ms of a sound, in decibels.

    Parameters
    ----------
    samples : float32 array [samples]
        The sound.

    Returns
    -------
    float64 array [1 + samples / 160]
    """
    half = _ENERGY_SAMPLES // 2
    squares = np.concatenate([np.zeros(half), samples.astype(np.float64) ** 2, np.zeros(_ENERGY_SAMPLES)])
    sums = np.concatenate([[0.0], np.cumsum(squares)])
    begins = np.arange(samples.size // _STEP_SAMPLES + 1) * _STEP_SAMPLES
    means = (sums[begins + _ENERGY_SAMPLES] - sums[begins]) / _ENERGY_SAMPLES
    return np.asarray(10 * np.log10(np.maximum(means, 0.0) + _FLOOR))


def _find_token_starts(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the second at which each token begins, and the end of the sound."""
    matrix = filter_median(weights, MEDIAN_FRAMES).mean(0)
    rows, frames = warp_time(-matrix.astype(np.float64))
    starts = frames[np.diff(rows, prepend=-1) > 0]
    return np.append(starts, weights.shape[2]) * FRAME_SECONDS


def _move_edges(starts: Any, ends: Any, energies: Energies, duration: float) -> None:
    """Move the edges of words, in place, to pauses and changes of energy."""
    pauses = _find_pauses(energies)
    inner = [(begin, end) for begin, end in pauses if begin > _STEP_SECONDS and end < duration - _STEP_SECONDS]
    for number in range(len(starts) - 1):
        edge = starts[number + 1]
        first, last = starts[number] + _MIN_WORD_SECONDS, ends[number + 1] - _MIN_WORD_SECONDS
        near = [pause for pause in inner if _measure_gap(edge, pause) <= _PAUSE_DISTANCE_SECONDS]
        pause = min(near, key=lambda each: _measure_gap(edge, each), default=None)
        if pause is None:
            moved = _find_change(energies, edge)
            if first <= moved <= last:
                ends[number] = starts[number + 1] = moved
        elif pause[0] > first and pause[1] < last:
            ends[number], starts[number + 1] = pause
    if pauses and pauses[0][0] <= _STEP_SECONDS and pauses[0][1] < ends[0]:
        starts[0] = pauses[0][1]
    if pauses and pauses[-1][1] >= duration - 2 * _STEP_SECONDS and pauses[-1][0] > starts[-1]:
        ends[-1] = pauses[-1][0]


def _find_pauses(energies: Energies) -> list[tuple[float, float]]:
    is_quiet = energies < np.percentile(energies, 95) - _PAUSE_DECIBELS
    changes = np.diff(np.concatenate([[0], is_quiet.astype(np.int8), [0]]))
    runs = zip(np.nonzero(changes == 1)[0], np.nonzero(changes == -1)[0], strict=True)
    pauses = [(float(begin * _STEP_SECONDS), float(end * _STEP_SECONDS)) for begin, end in runs]
    return [(begin, end) for begin, end in pauses if end - begin >= _MIN_PAUSE_SECONDS]


def _measure_gap(edge: float, pause: tuple[float, float]) -> float:
    """Return the distance of an edge from a pause, 0 inside of it."""
    return max(pause[0] - edge, edge - pause[1], 0.0)


def _find_change(energies: Energies, edge: float) -> float:
    """Return the second of the largest change of energy near an edge."""
    middle, reach = round(edge / _STEP_SECONDS), round(_CHANGE_DISTANCE_SECONDS / _STEP_SECONDS)
    first, last = max(1, middle - reach), min(energies.size - 2, middle + reach)
    if first > last:
        return edge
    changes = np.abs(energies[first + 1 : last + 2] - energies[first - 1 : last])
    return float((first + int(changes.argmax())) * _STEP_SECONDS)


def _measure_confidence(weights: NDArray[np.float32], start: float, end: float) -> float:
    """Return the share of a word's weights that lies between two times, a frame more on each side."""
    first, last = round(start / FRAME_SECONDS) - 1, round(end / FRAME_SECONDS) + 1
    inside = float(weights[:, :, max(first, 0) : last].sum())
    return inside / max(float(weights.sum()), _FLOOR)
