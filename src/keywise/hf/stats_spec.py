"""The choice of attention statistics to record, and segments of token positions."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import check_bool, check_int

KINDS = ("self", "cross")


@dataclass(frozen=True, eq=False)
class StatsSpec:
    """Select the layers, heads, queries and statistics that `record_stats` records.

    Parameters
    ----------
    layers : iterable of int, optional
        Numbers of the layers to record; default all, or those that `heads` names.
    heads : iterable of int, or mapping of int to iterable of int, optional
        Numbers of the query heads to record, in every layer or for each layer by its number; default all.
    queries : int or slice or range, optional
        The queries to report: a number n for the last n of each call, or a slice or range of token positions,
        padding counted, in whichever call they occur. Default all. `key_mass` sums over these queries.
    top_k : int
        Number of heaviest keys per query; 0 for none.
    segment_bounds : int array [S+1], optional
        Increasing key positions that bound S segments. Keys after the last bound belong to no segment, so the keys may
        grow while decoding; fewer keys than the segments cover are an error. For an encoder-decoder model choose the
        `kind` that the segments are meant for.
    segment_ids : int array [tokens], optional
        The segment of every key, -1 for none, instead of bounds. Keys after the last belong to no segment.
    key_mass : bool
        Whether to sum the weights per key.
    kind : str, optional
        ``"self"`` or ``"cross"`` to record that attention only.
    stop : bool
        Whether to leave the ``with`` block as soon as every layer of `layers` was recorded. The model then returns no
        output, and a cache passed to it lacks the tokens in the layers that did not run.
    differentiable : bool
        Whether a loss may use the statistics: LSE, entropy, key mass and segment mass then have gradients, which needs
        a call with gradients.

    Raises
    ------
    DtypeError
        An argument has the wrong type.
    OptionError
        A value cannot be used, such as ``stop=True`` without `layers`.
    ShapeError
        `segment_bounds` or `segment_ids` does not have exactly one axis, or is empty.

    Examples
    --------
    >>> from keywise.hf import StatsSpec
    >>> spec = StatsSpec(layers=range(4), queries=1, segment_bounds=[0, 12, 30])
    >>> spec.layers, spec.top_k
    ((0, 1, 2, 3), 8)
    """

    layers: Iterable[int] | None = None
    heads: Iterable[int] | Mapping[int, Iterable[int]] | None = None
    queries: int | slice | range | None = None
    top_k: int = 8
    segment_bounds: Any = None
    segment_ids: Any = None
    key_mass: bool = True
    kind: str | None = None
    stop: bool = False
    differentiable: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.heads, Mapping):
            heads = {check_int("heads", layer, minimum=0): numbers for layer, numbers in self.heads.items()}
            heads = {layer: _check_numbers("heads", numbers) for layer, numbers in heads.items()}
            object.__setattr__(self, "heads", heads)
            if self.layers is not None:
                raise OptionError("layers", "cannot be combined with heads of single layers", remedy="pass heads alone")
            object.__setattr__(self, "layers", tuple(heads))
        elif self.heads is not None:
            object.__setattr__(self, "heads", _check_numbers("heads", self.heads))
        if self.layers is not None:
            object.__setattr__(self, "layers", _check_numbers("layers", self.layers))
        check_int("top_k", self.top_k, minimum=0)
        check_bool("key_mass", self.key_mass)
        check_bool("stop", self.stop)
        check_bool("differentiable", self.differentiable)
        if self.kind is not None:
            check_kind("kind", self.kind)
        if self.stop and not self.layers:
            raise OptionError("stop", "must be False without layers", got=True, remedy="name the layers to stop after")
        # Both are derived here, so that a wrong argument is reported where it is written.
        _ = self.query_range, self.token_segments

    @functools.cached_property
    def query_range(self) -> int | tuple[int, int | None]:
        """The selected queries.

        The number of last queries of each call, or the first token position and the one after the last.
        """
        queries = self.queries
        if queries is None:
            return 0, None
        if not isinstance(queries, (slice, range)):
            return check_int("queries", queries, minimum=1)
        if queries.step not in (None, 1):
            raise OptionError("queries", "must have a step of 1", got=queries)
        start = check_int("queries.start", queries.start or 0, minimum=0)
        if queries.stop is None:
            return start, None
        return start, check_int("queries.stop", queries.stop, minimum=0)

    @functools.cached_property
    def token_segments(self) -> TokenSegments | None:
        """The segments over token positions; None without any."""
        if self.segment_bounds is None and self.segment_ids is None:
            return None
        if self.segment_bounds is not None and self.segment_ids is not None:
            raise OptionError("segment_bounds", "cannot be combined with segment_ids", remedy="pass one of them")
        if self.segment_bounds is not None:
            return TokenSegments.from_bounds(self.segment_bounds)
        return TokenSegments.from_ids(self.segment_ids)

    def select_heads(self, layer: int | None) -> tuple[int, ...] | None:
        """Return the numbers of the heads to record in a layer; None for all.

        Parameters
        ----------
        layer : int or None
            The layer's number.

        Examples
        --------
        >>> StatsSpec(heads={3: [0, 5]}).select_heads(3)
        (0, 5)
        """
        if isinstance(self.heads, Mapping):
            return tuple(self.heads[layer]) if layer in self.heads else ()
        return None if self.heads is None else tuple(self.heads)

    def select_queries(self, first_query: int, queries: int) -> tuple[int, int]:
        """Return the first selected query of a call, and the one after the last.

        Parameters
        ----------
        first_query : int
            Token position of the call's first query.
        queries : int
            Number of queries of the call.

        Examples
        --------
        >>> StatsSpec(queries=slice(4, 9)).select_queries(6, 10)
        (0, 3)
        """
        if isinstance(self.query_range, int):
            return max(queries - self.query_range, 0), queries
        start, stop = self.query_range
        first = min(max(start - first_query, 0), queries)
        last = queries if stop is None else min(max(stop - first_query, first), queries)
        return first, last

    def make_request(self, queries: int) -> StatsRequest:
        """Return the statistics of a single call of attention, whose queries are numbered from 0.

        Parameters
        ----------
        queries : int
            Number of queries of the call.

        Raises
        ------
        OptionError
            A field selects layers or heads, which a single call does not have.

        Examples
        --------
        >>> StatsSpec(queries=2, top_k=3).make_request(10).queries
        (8, 10)
        """
        for name in ("layers", "heads", "kind"):
            if getattr(self, name) is not None:
                raise OptionError(name, "must be None for a single call of attention", got=getattr(self, name))
        return StatsRequest(
            top_k=self.top_k,
            segment_bounds=self.segment_bounds,
            segment_ids=self.segment_ids,
            key_mass=self.key_mass,
            queries=self.select_queries(0, queries),
        )


class TokenSegments:
    """Segments over token positions, for calls that see any range of them.

    Parameters
    ----------
    argument : str
        Name of the user's argument, for errors.
    ids : int array [tokens]
        The segment of every token, -1 for none.
    """

    def __init__(self, argument: str, ids: Any) -> None:
        self._argument = argument
        self._ids = ids
        self.count = int(self._ids.max()) + 1
        self._latest: tuple[tuple[int, int], tuple[Any, Any]] | None = None

    @classmethod
    def from_bounds(cls, bounds: Any) -> TokenSegments:
        """Return the segments between increasing positions.

        Parameters
        ----------
        bounds : int array [S+1]
            Token positions; segment s holds the tokens from ``bounds[s]`` to ``bounds[s + 1] - 1``.
        """
        positions = _check_positions("segment_bounds", bounds)
        if positions.size < 2 or positions[0] < 0 or not (np.diff(positions) > 0).all():
            raise OptionError(
                "segment_bounds", "must be two or more increasing positions from 0", got=positions.tolist()
            )
        ids = np.repeat(np.arange(-1, positions.size - 1), np.diff(positions, prepend=0))
        return cls("segment_bounds", ids)

    @classmethod
    def from_ids(cls, ids: Any) -> TokenSegments:
        """Return the segments with these ids.

        Parameters
        ----------
        ids : int array [tokens]
            The segment of every token, -1 for none.
        """
        numbers = _check_positions("segment_ids", ids)
        if numbers.min() < -1:
            raise OptionError("segment_ids", "must be 0 or more, or -1 for none", got=int(numbers.min()))
        return cls("segment_ids", numbers)

    def number_keys(self, layer: str, first_key: int, keys: int) -> tuple[Any, Any]:
        """Return the segments of a call's keys, numbered without gaps.

        Parameters
        ----------
        layer : str
            Name of the layer, for errors.
        first_key : int
            Token position of the call's first key.
        keys : int
            Number of keys of the call.

        Returns
        -------
        int array [keys] or None, int array [segments present] or None
            The number of every key's segment, -1 for none, and the segment of each number. Both are None
            where the call sees no key of any segment.

        Raises
        ------
        ShapeError
            The segments cover more tokens than the call has keys.
        """
        if first_key + keys < self._ids.size:
            raise ShapeError(
                self._argument,
                f"must cover at most the {first_key + keys} keys that {layer} sees",
                got=int(self._ids.size),
                remedy='choose the attention that they are meant for with kind="self" or kind="cross"',
            )
        # The layers of one step mostly see the same keys.
        if self._latest is None or self._latest[0] != (first_key, keys):
            ids = np.full(keys, -1, np.int64)
            covered_ids = self._ids[first_key : first_key + keys]
            ids[: covered_ids.size] = covered_ids
            present = np.unique(ids[ids >= 0])
            numbers = np.where(ids < 0, -1, np.searchsorted(present, ids))
            numbered = (numbers, present) if present.size else (None, None)
            self._latest = (first_key, keys), numbered
        return self._latest[1]


def check_kind(argument: str, kind: str) -> str:
    """Return a kind of attention, or raise.

    Parameters
    ----------
    argument : str
        The argument's name, for the error.
    kind : str
        ``"self"`` or ``"cross"``.

    Raises
    ------
    OptionError
        `kind` is neither of the two.
    """
    if kind not in KINDS:
        raise OptionError(argument, "must be 'self' or 'cross'", got=kind)
    return kind


def _check_numbers(name: str, numbers: Any) -> tuple[int, ...]:
    if isinstance(numbers, (int, str)) or not isinstance(numbers, Iterable):
        raise DtypeError(name, "must be several integers, such as [0, 1] or range(4)", got=numbers)
    return tuple(sorted({check_int(name, number, minimum=0) for number in numbers}))


def _check_positions(name: str, values: Any) -> Any:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ShapeError(name, "must have one axis that is not empty", got=list(array.shape))
    if array.dtype == np.bool_ or not np.issubdtype(array.dtype, np.integer):
        raise DtypeError(name, "must hold integers", got=str(array.dtype))
    return array
