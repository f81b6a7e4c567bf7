"""Recorded attention statistics of one call of one layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from keywise.attention.stats import AttentionStats
from keywise.errors import OptionError

STATISTICS: Final = tuple(field.name for field in fields(AttentionStats) if field.name != "output")
"""Names of the statistics that a call may have."""


@dataclass(frozen=True, eq=False)
class LayerStats:
    """Attention statistics of one call of one attention layer.

    Attributes
    ----------
    name : str
        The layer's qualified name in the model (``"model.layers.3.self_attn"``).
    layer : int or None
        The layer's number in its stack; encoder, decoder and cross-attention count separately.
    kind : str
        ``"self"`` or ``"cross"``.
    step : int
        0 for the layer's first call since recording began (prefill), then 1, 2, ... (chunks, decoding steps).
    queries : (int, int)
        Token positions of the first query and of the one after the last, padding counted.
    heads : tuple of int
        Numbers of the query heads along the head axis of `stats`.
    first_key : int
        Token position of key 0 of `stats`; above 0 where a sliding-window cache has dropped earlier keys.
    stats : keywise.AttentionStats
        The statistics of these queries and heads. `output` is None: it went to the model.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> key = np.eye(4, dtype=np.float32)[None, None]
    >>> stats = kw.attention_stats(key, key, key)
    >>> record = LayerStats("layers.0.attention", 0, "self", 0, (0, 4), (0,), 0, stats)
    >>> record.layer, record.stats.key_mass.shape
    (0, (1, 1, 4))
    """

    name: str
    layer: int | None
    kind: str
    step: int
    queries: tuple[int, int]
    heads: tuple[int, ...]
    first_key: int
    stats: AttentionStats


def get_statistic(record: LayerStats, name: str) -> NDArray[Any]:
    """Return a statistic of one call as a NumPy array.

    Parameters
    ----------
    record : LayerStats
        The call.
    name : str
        A field of `keywise.AttentionStats` other than `output`.

    Raises
    ------
    OptionError
        There is no such statistic, or it was not recorded.

    Examples
    --------
    >>> get_statistic(record[0], "entropy").shape  # doctest: +SKIP
    (1, 9, 128)
    """
    if name not in STATISTICS:
        raise OptionError("name", f"must be one of {', '.join(STATISTICS)}", got=name)
    values = getattr(record.stats, name)
    if values is None:
        remedy = "pass segment_bounds or segment_ids" if name == "segment_mass" else "record with key_mass=True"
        raise OptionError("name", "must be a statistic that was recorded", got=name, remedy=remedy)
    return np.asarray(values.detach() if hasattr(values, "detach") else values)
