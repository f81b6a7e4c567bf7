"""Recorded attention statistics: one record per layer and call, and a sequence of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

from keywise.attention.stats import AttentionStats
from keywise.hf.stats_spec import check_kind


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


class StatsRecord(Sequence[LayerStats]):
    """Recorded statistics of a model, in the order in which its layers ran.

    Parameters
    ----------
    records : iterable of LayerStats
        The records, in order.

    Examples
    --------
    >>> from keywise.hf import StatsRecord
    >>> StatsRecord(), len(StatsRecord().layer(3))
    (StatsRecord(0 calls of 0 layers), 0)
    """

    def __init__(self, records: Iterable[LayerStats] = ()) -> None:
        self._records = list(records)

    @overload
    def __getitem__(self, index: int) -> LayerStats: ...
    @overload
    def __getitem__(self, index: slice) -> StatsRecord: ...
    def __getitem__(self, index: int | slice) -> LayerStats | StatsRecord:
        if isinstance(index, slice):
            return StatsRecord(self._records[index])
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        layers = {record.name for record in self}
        return f"StatsRecord({len(self)} calls of {len(layers)} layers)"

    def layer(self, number: int) -> StatsRecord:
        """Return the records of one layer.

        Parameters
        ----------
        number : int
            The layer's number in its stack.

        Examples
        --------
        >>> record.layer(3)[0].stats  # doctest: +SKIP
        """
        return StatsRecord(record for record in self if record.layer == number)

    def step(self, number: int) -> StatsRecord:
        """Return the records of one step.

        Parameters
        ----------
        number : int
            0 for the prefill, then one per chunk or decoding step.

        Examples
        --------
        >>> prefill = record.step(0)  # doctest: +SKIP
        """
        return StatsRecord(record for record in self if record.step == number)

    def kind(self, name: str) -> StatsRecord:
        """Return the records of self-attention or of cross-attention.

        Parameters
        ----------
        name : str
            ``"self"`` or ``"cross"``.

        Raises
        ------
        OptionError
            `name` is neither of the two.

        Examples
        --------
        >>> alignment = record.kind("cross")  # doctest: +SKIP
        """
        check_kind("name", name)
        return StatsRecord(record for record in self if record.kind == name)
