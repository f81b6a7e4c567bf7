"""The temperature under which a library's sentences best predict their next sentences.

A sentence is a query; the next sentence of its paragraph is the right key and all others are wrong. The temperature
with the largest likelihood calibrates the weights.

Source: Guo et al., "On Calibration of Modern Neural Networks" (2017).
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np

from keywise.attention.operation import partial
from keywise.attention.partial import Partial, merge
from keywise.errors import FormatError
from keywise.library.arrow_arrays import Array, arrow_to_vectors
from keywise.library.dataset import open_dataset, verify_files
from keywise.library.schema import KEY, read_encoder_id
from keywise.library.transactions import lock_writers

TEMPERATURE_FIELD: Final = "keywise.library.temperature"
CALIBRATED_ROWS_FIELD: Final = "keywise.library.calibrated_rows"

SAMPLED_PAIRS: Final = 256
SAMPLED_ROWS: Final = 8192
CANDIDATES: Final = tuple(float(2.0 ** (step / 4)) for step in range(-32, 9))
"""Relative to the keys' mean squared length, which is 1 for most encoders: from 1/256 to 4."""

UNCALIBRATED: Final = 0.05
"""Relative in the same way; used if no sampled sentence has a next one in its paragraph."""


def load_temperature(path: str, dataset: Any) -> float:
    """Return the temperature of a library at a path.

    It is the stored one, else a calibrated one; for keys of the user's own the square root of their dimension.
    """
    config = dataset.config()
    if TEMPERATURE_FIELD in config:
        return _parse_temperature(config[TEMPERATURE_FIELD])
    if read_encoder_id(dataset.schema) is None:
        return float(np.sqrt(dataset.schema.field(KEY).type.list_size))
    verify_files(path, dataset)
    return calibrate_temperature(dataset)


def update_temperature(path: str) -> None:
    """Calibrate and store a library's temperature if its rows doubled since the last calibration."""
    dataset = open_dataset(path)
    verify_files(path, dataset)
    row_count = dataset.count_rows()
    text = dataset.config().get(CALIBRATED_ROWS_FIELD, "0")
    calibrated_rows = int(text) if re.fullmatch(r"[0-9]{1,18}", text) else 0
    if row_count < 2 * max(calibrated_rows, 1):
        return
    temperature = calibrate_temperature(dataset)
    with lock_writers(path):
        open_dataset(path).update_config({TEMPERATURE_FIELD: repr(temperature), CALIBRATED_ROWS_FIELD: str(row_count)})


def calibrate_temperature(dataset: Any) -> float:
    """Compute the temperature of a library of sentences.

    The sample is pseudo-random with a fixed seed, so the same rows have the same temperature.
    """
    generator = np.random.default_rng(0)
    row_count = dataset.count_rows()
    pair_count = max(row_count - 1, 1)
    first_rows = np.sort(generator.choice(pair_count, min(SAMPLED_PAIRS, pair_count), replace=False))
    columns = [KEY, "document", "paragraph", "sentence"]
    first_table = dataset.take(first_rows % row_count, columns=columns)
    next_table = dataset.take((first_rows + 1) % row_count, columns=columns)
    queries = arrow_to_vectors(first_table[KEY])
    squared_length = float((queries.astype(np.float64) ** 2).sum(axis=1).mean()) or 1.0
    follows = _compare_places(first_table, next_table)
    if not follows.any():
        return UNCALIBRATED * squared_length
    queries = queries[follows]
    next_keys = arrow_to_vectors(next_table[KEY])[follows]
    first_rows = first_rows[follows]

    sampled_rows = np.sort(generator.choice(row_count, min(SAMPLED_ROWS, row_count), replace=False))
    keys = arrow_to_vectors(dataset.take(sampled_rows, columns=[KEY])[KEY])
    is_wrong = (sampled_rows != first_rows[:, None]) & (sampled_rows != first_rows[:, None] + 1)
    next_scores = (queries.astype(np.float64) * next_keys).sum(axis=1)
    # The sampled wrong rows stand for all wrong rows.
    rows_per_sample = (row_count - 2) / np.maximum(is_wrong.sum(axis=1), 1)
    ones = np.broadcast_to(keys.dtype.type(1), (1, 1, len(keys), 1))

    def compute_loss(temperature: float) -> float:
        """Return the mean of -log(weight of the next sentence)."""
        sampled = partial(queries[None, None], keys[None, None], ones, mask=is_wrong[None, None], scale=1 / temperature)
        wrong = Partial(sampled.running_max, sampled.running_sum * rows_per_sample, sampled.values)
        score = (next_scores / temperature).astype(np.float32)[None, None]
        right = Partial(score, np.ones_like(score), np.ones_like(score)[..., None])
        return float((merge(wrong, right).lse() - score).mean())

    return min((candidate * squared_length for candidate in CANDIDATES), key=compute_loss)


def _parse_temperature(text: str) -> float:
    """Return a stored temperature, or raise."""
    try:
        temperature = float(text)
    except ValueError:
        temperature = 0.0
    if not 0 < temperature < float("inf"):
        raise FormatError("path", f"must be a library whose {TEMPERATURE_FIELD} is a number above 0", got=text)
    return temperature


def _compare_places(first_table: Any, next_table: Any) -> Array:
    """Return which rows are followed by the next table's in the same paragraph."""
    first_places = first_table.drop_columns([KEY]).to_pylist()
    next_places = next_table.drop_columns([KEY]).to_pylist()
    return np.array(
        [
            first["document"] == following["document"]
            and first["paragraph"] == following["paragraph"]
            and first["sentence"] + 1 == following["sentence"]
            for first, following in zip(first_places, next_places, strict=True)
        ],
        bool,
    )
