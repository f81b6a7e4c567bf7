"""Recorded statistics as a table with a row for every number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keywise.errors import OptionError
from keywise.hf.layer_stats import LayerStats, get_statistic
from keywise.util.optional_imports import require_modules


def make_table(record: Sequence[LayerStats], name: str) -> Any:
    """Return one statistic of a record as a table.

    Parameters
    ----------
    record : sequence of LayerStats
        The recorded calls.
    name : str
        The statistic.

    Returns
    -------
    pandas.DataFrame
        As `StatsRecord.to_dataframe` describes it.

    Raises
    ------
    OptionError
        There is no such statistic, or it was not recorded, or nothing was recorded.
    ModelError
        pandas is not installed.
    """
    require_modules("study", "pandas")
    import pandas

    if not len(record):
        raise OptionError("record", "must hold a call", got=record, remedy="run the model inside record_stats")
    return pandas.concat([pandas.DataFrame(_list_columns(call, name)) for call in record], ignore_index=True)


def _list_columns(call: LayerStats, name: str) -> dict[str, NDArray[Any]]:
    values = get_statistic(call, name)
    indices = np.indices(values.shape).reshape(values.ndim, -1)
    columns: dict[str, Any] = {"name": call.name, "layer": call.layer, "kind": call.kind, "step": call.step}
    columns["item"], columns["head"] = indices[0], np.asarray(call.heads)[indices[1]]
    if name == "key_mass":
        columns["key"] = indices[2] + call.first_key
    else:
        columns["query"] = indices[2] + call.queries[0]
    if name == "segment_mass":
        columns["segment"] = indices[3]
    if name not in {"top_keys", "top_weights"}:
        return {**columns, name: values.ravel()}
    keys = get_statistic(call, "top_keys").ravel()
    columns |= {"rank": indices[3], "key": keys + call.first_key}
    columns["weight"] = get_statistic(call, "top_weights").ravel()
    is_key = keys >= 0
    return {column: each[is_key] if isinstance(each, np.ndarray) else each for column, each in columns.items()}
