"""The temperature of a library: the one under which its sentences best foretell the sentence that follows them.

A sentence is a query, the next one of its paragraph is right, all others are wrong: the temperature with the largest
likelihood makes weights mean what they say, as in Guo et al., "On Calibration of Modern Neural Networks" (2017).
"""

from __future__ import annotations

from typing import Any, Final

import lance
import numpy as np

from keywise.attention.operation import partial
from keywise.attention.partial import Partial, merge
from keywise.library.commits import alone
from keywise.library.schema import KEY, made_by, numbers_of

TEMPERATURE: Final = "keywise.temperature"
CALIBRATED_ROWS: Final = "keywise.temperature.rows"

SAMPLED_PAIRS: Final = 256
SAMPLED_ROWS: Final = 8192
TRIED: Final = tuple(float(2.0 ** (step / 4)) for step in range(-32, 9))
"""Relative to the keys' mean squared length, which is 1 for most encoders: from 1/256 to 4."""

UNCALIBRATED: Final = 0.05
"""Relative in the same way; where no sentence has a next one in its paragraph."""


def temperature_of(dataset: Any) -> float:
    """Give the temperature of a library: the one that it keeps, else the one found now; of a user's keys, sqrt(D)."""
    kept = dataset.config()
    if TEMPERATURE in kept:
        return float(kept[TEMPERATURE])
    if not made_by(dataset.schema)[1]:
        return float(np.sqrt(dataset.schema.field(KEY).type.list_size))
    return calibrated(dataset)


def keep_calibrated(path: str) -> None:
    """Find the temperature anew, and keep it in the library, whenever that has doubled."""
    dataset = lance.dataset(path)
    rows = dataset.count_rows()
    if rows < 2 * max(int(dataset.config().get(CALIBRATED_ROWS, "0")), 1):
        return
    found = calibrated(dataset)
    with alone(path):
        lance.dataset(path).update_config({TEMPERATURE: repr(found), CALIBRATED_ROWS: str(rows)})


def calibrated(dataset: Any) -> float:
    """Find the temperature of a library of sentences; the same rows give the same temperature."""
    random = np.random.default_rng(0)
    rows = dataset.count_rows()
    first = np.sort(random.choice(max(rows - 1, 1), min(SAMPLED_PAIRS, max(rows - 1, 1)), replace=False))
    columns = [KEY, "document", "paragraph", "sentence"]
    left, right = (dataset.take((first + step) % rows, columns=columns) for step in (0, 1))
    follows = np.array(
        [
            one["document"] == two["document"]
            and one["paragraph"] == two["paragraph"]
            and one["sentence"] + 1 == two["sentence"]
            for one, two in zip(_places(left), _places(right), strict=True)
        ],
        bool,
    )
    queries, following = numbers_of(left[KEY]), numbers_of(right[KEY])
    unit = float((queries.astype(np.float64) ** 2).sum(axis=1).mean()) or 1.0
    if not follows.any():
        return UNCALIBRATED * unit
    queries, following, first = queries[follows], following[follows], first[follows]
    others = np.sort(random.choice(rows, min(SAMPLED_ROWS, rows), replace=False))
    keys = numbers_of(dataset.take(others, columns=[KEY])[KEY])
    wrong = (others != first[:, None]) & (others != first[:, None] + 1)
    scores = (queries.astype(np.float64) * following).sum(axis=1)
    # Each sampled row stands for as many as were not sampled.
    standing_for = (rows - 2) / np.maximum(wrong.sum(axis=1), 1)
    one = np.broadcast_to(keys.dtype.type(1), (1, 1, len(keys), 1))

    def loss(temperature: float) -> float:
        """Give the mean of -log(weight of the sentence that follows)."""
        sampled = partial(queries[None, None], keys[None, None], one, mask=wrong[None, None], scale=1 / temperature)
        others = Partial(sampled.running_max, sampled.running_sum * standing_for, sampled.values)
        score = (scores / temperature).astype(np.float32)[None, None]
        whole = merge(others, Partial(score, np.ones_like(score), np.ones_like(score)[..., None]))
        return float((whole.lse() - score).mean())

    return min((tried * unit for tried in TRIED), key=loss)


def _places(table: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.drop_columns([KEY]).to_pylist()
    return found
