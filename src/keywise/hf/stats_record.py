"""A sequence of recorded attention statistics, one per layer and call."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from keywise.errors import OptionError, ShapeError
from keywise.hf.layer_stats import STATISTICS, LayerStats, get_statistic
from keywise.hf.record_file import read_calls, write_calls
from keywise.hf.record_page import draw_maps, write_page
from keywise.hf.record_table import make_table
from keywise.hf.stats_spec import check_kind


class TopToken(NamedTuple):
    """A key that a query attended to.

    Attributes
    ----------
    token
        Text of the key's token.
    key
        Token position of the key.
    weight
        Weight of the key.
    """

    token: str
    key: int
    weight: float


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

    def stack(self, name: str) -> NDArray[Any]:
        """Return one statistic of all layers and steps as an array.

        Parameters
        ----------
        name : str
            A field of `keywise.AttentionStats` other than `output`.

        Returns
        -------
        array [steps, layers, B, Hq, ...]
            Steps and layers in the order in which they ran.

        Raises
        ------
        OptionError
            There is no such statistic, or it was not recorded, or nothing was recorded.
        ShapeError
            Steps or layers have different shapes or are missing: select some with `step`, `layer` or `kind`.

        Examples
        --------
        >>> record.step(0).stack("entropy").shape  # doctest: +SKIP
        (1, 30, 1, 9, 128)
        """
        if name not in STATISTICS:
            raise OptionError("name", f"must be one of {', '.join(STATISTICS)}", got=name)
        if not self._records:
            raise OptionError("record", "must hold a call", got=self, remedy="run the model inside record_stats")
        calls = {(record.step, record.name): get_statistic(record, name) for record in self}
        steps = list(dict.fromkeys(step for step, _ in calls))
        layers = list(dict.fromkeys(layer for _, layer in calls))
        shapes = sorted({values.shape for values in calls.values()})
        if len(shapes) != 1 or len(calls) != len(steps) * len(layers):
            raise ShapeError(
                "name",
                f"must have one shape in {len(steps)} steps of {len(layers)} layers",
                got=[list(shape) for shape in shapes],
                remedy="select some with step(0), layer(3) or kind('self')",
            )
        return np.stack([np.stack([calls[step, layer] for layer in layers]) for step in steps])

    def top_tokens(
        self, tokens: Sequence[str], layer: int, head: int, *, step: int = 0, item: int = 0
    ) -> dict[int, list[TopToken]]:
        """Return the tokens that each query of one head attended to most.

        Parameters
        ----------
        tokens : sequence of str
            The text of every token, such as ``tokenizer.convert_ids_to_tokens(ids[0])``.
        layer, head : int
            Number of the layer and of the query head.
        step : int
            0 for the prefill, then one per chunk or decoding step.
        item : int
            Batch item.

        Returns
        -------
        dict of int to list of TopToken
            By token position of the query, the heaviest first; as many as `top_k` of the record.

        Raises
        ------
        OptionError
            There is no such call, head or item, or several kinds of attention: select one with `kind`.
        ShapeError
            A key lies behind the last of `tokens`.

        Examples
        --------
        >>> record.top_tokens(["The", " lamp", " was", " lit"], layer=3, head=1)[3]  # doctest: +SKIP
        [TopToken(token=' lamp', key=1, weight=0.62), ...]
        """
        calls = [record for record in self if (record.layer, record.step) == (layer, step)]
        if len(calls) != 1:
            rule = f"and step must name one call, got {len(calls)} calls at step {step}"
            raise OptionError("layer", rule, got=layer, remedy="see record.layer(...) and record.kind(...)")
        (call,) = calls
        if head not in call.heads:
            raise OptionError("head", f"must be one of the recorded heads {list(call.heads)}", got=head)
        keys, weights = get_statistic(call, "top_keys"), get_statistic(call, "top_weights")
        if not 0 <= item < len(keys):
            raise OptionError("item", f"must be between 0 and {len(keys) - 1}", got=item)
        place = item, call.heads.index(head)
        last = int(keys[place].max(initial=-1)) + call.first_key
        if last >= len(tokens):
            raise ShapeError("tokens", f"must have the text of every key, of the last at {last} too", got=len(tokens))
        return {
            call.queries[0] + query: [
                TopToken(tokens[key + call.first_key], int(key) + call.first_key, float(weight))
                for key, weight in zip(keys[place][query], weights[place][query], strict=True)
                if key >= 0
            ]
            for query in range(keys.shape[2])
        }

    def to_dataframe(self, name: str = "entropy") -> Any:
        """Return one statistic as a pandas table with a row for every number.

        Parameters
        ----------
        name : str
            A field of `keywise.AttentionStats` other than `output`. ``"top_keys"`` and ``"top_weights"`` are the same
            table.

        Returns
        -------
        pandas.DataFrame
            The columns ``name``, ``layer``, ``kind``, ``step``, ``item``, ``head``; ``query``, ``key`` (token
            positions), ``rank`` or ``segment`` where the statistic has them; and the statistic.

        Raises
        ------
        OptionError
            There is no such statistic, or it was not recorded, or nothing was recorded.
        ModelError
            pandas is not installed.

        Examples
        --------
        >>> record.to_dataframe("entropy").groupby(["layer", "head"]).entropy.mean()  # doctest: +SKIP
        """
        return make_table(self, name)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page with a map of every recorded statistic by layer and head.

        Parameters
        ----------
        path : path
            The file to write or replace.

        Raises
        ------
        FormatError
            The file cannot be written.
        OptionError
            Nothing was recorded.

        Examples
        --------
        >>> record.to_html("attention.html")  # doctest: +SKIP
        """
        write_page(self, path)

    def _repr_html_(self) -> str:
        return draw_maps(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the record as a safetensors file.

        Parameters
        ----------
        path : path
            The file to write or replace.

        Raises
        ------
        FormatError
            The file cannot be written.
        ModelError
            safetensors is not installed.

        Examples
        --------
        >>> record.save("attention.safetensors")  # doctest: +SKIP
        """
        write_calls(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> StatsRecord:
        """Load a record that `save` has written; its arrays are NumPy's.

        Parameters
        ----------
        path : path
            The file.

        Raises
        ------
        MissingFileError, FormatError
            The file is missing, damaged or no record.
        ModelError
            safetensors is not installed.

        Examples
        --------
        >>> keywise.hf.StatsRecord.load("attention.safetensors")  # doctest: +SKIP
        StatsRecord(30 calls of 30 layers)
        """
        return cls(read_calls(path))
