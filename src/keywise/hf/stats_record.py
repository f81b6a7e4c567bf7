"""Reads a transformers model at work: which keys mattered, per layer, in prefill and in every decoding step."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any, overload

import numpy as np

from keywise.attention.stats import AttentionStats
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, ModelError, OptionError, ShapeError
from keywise.hf.parts import NAME, named_modules, parts_among
from keywise.util.checks import check_int

_CROSS = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
_KINDS = ("self", "cross")
LARGE_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class LayerStats:
    """What one call of one attention layer found out.

    Attributes
    ----------
    name : str
        The layer's qualified name in the model (``"model.layers.3.self_attn"``).
    layer : int or None
        The layer's number in its stack; encoder, decoder and cross-attention count separately.
    kind : str
        ``"self"`` or ``"cross"``.
    step : int
        0 for the first call of this layer since reading began (prefill), then 1, 2, ... (chunks, decoding steps).
    queries : (int, int)
        Token positions of the first query row read and of the row after the last, padding counted.
    first_key : int
        Token position of key 0 of `reading`; above 0 where a sliding cache has dropped the keys before.
    reading : keywise.Reading
        The findings for these rows; its `output` is None, the model has it.
    """

    name: str
    layer: int | None
    kind: str
    step: int
    queries: tuple[int, int]
    first_key: int
    stats: AttentionStats


class StatsRecord(Sequence[LayerStats]):
    """The readings of a model in the order in which its layers ran."""

    def __init__(self, records: Iterable[LayerStats] = ()) -> None:
        self._records = list(records)

    @overload
    def __getitem__(self, index: int) -> LayerStats: ...
    @overload
    def __getitem__(self, index: slice) -> StatsRecord: ...
    def __getitem__(self, index: int | slice) -> LayerStats | StatsRecord:
        return StatsRecord(self._records[index]) if isinstance(index, slice) else self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"Readings({len(self)} calls of {len({record.name for record in self})} layers)"

    def layer(self, number: int) -> StatsRecord:
        """Give the readings of one layer number."""
        return StatsRecord(record for record in self if record.layer == number)

    def step(self, number: int) -> StatsRecord:
        """Give the readings of one step: 0 for the prefill."""
        return StatsRecord(record for record in self if record.step == number)

    def kind(self, name: str) -> StatsRecord:
        """Give the readings of self-attention (``"self"``) or cross-attention (``"cross"``)."""
        return StatsRecord(record for record in self if record.kind == _kind(name))


@contextmanager
def record_stats(
    model: Any,
    *,
    segment_bounds: Any = None,
    segment_ids: Any = None,
    layers: Iterable[int] | None = None,
    queries: int | slice | range | None = None,
    top_k: int = 0,
    key_mass: bool = True,
    kind: str | None = None,
    stop: bool = False,
) -> Iterator[StatsRecord]:
    """Collect what every attention layer of a model finds out about its keys while the block runs.

    Memory per call is that of the readings asked for: linear in the tokens. Only this model is read, and only calls
    made in the thread (or task) that opened the block; a model started in another thread has to open it there.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model that attends by keywise: see `keywise.hf.use`.
    segment_bounds : int array [S+1], optional
        Increasing key positions that bound S segments. Keys after the last bound belong to no segment, so the keys
        may grow while decoding; fewer keys than the segments cover are an error. With an encoder and a decoder choose
        the `kind` they are meant for.
    segment_ids : int array [tokens], optional
        The segment of every key, -1 for none, instead of bounds; keys after the last belong to no segment.
    layers : iterable of int, optional
        Layers to read; default all.
    queries : int or slice or range, optional
        Query rows to read: a number for the last so many of each call, or a slice or range of token positions, padding
        counted, whichever call they come in. Default all. `key_mass` sums over the rows read.
    top_k : int
        Number of heaviest keys per row.
    key_mass : bool
        Whether to sum the weights per key.
    kind : str, optional
        ``"self"`` or ``"cross"`` to read that attention only.
    stop : bool
        Whether to leave the block as soon as each of `layers` has been read: for readings alone a model need not run
        to its end. It gives no output then, and a cache given to it lacks tokens in the layers that did not run.

    Yields
    ------
    Readings
        One `LayerReading` per layer and call; it grows while the block runs.

    Raises
    ------
    ModelError
        When the model does not attend by keywise, or is being read already.
    OptionError, DtypeError, ShapeError
        When a choice cannot be used.

    Examples
    --------
    >>> import torch, keywise.hf
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=3)
    >>> model = keywise.hf.use(LlamaForCausalLM(small).eval())
    >>> with torch.no_grad(), keywise.hf.record_stats(model, layers=[2], queries=1) as records:
    ...     _ = model(torch.tensor([[5, 6, 7, 8]]))
    >>> records[0].name, records[0].queries, tuple(records[0].stats.key_mass.shape)
    ('model.layers.2.self_attn', (3, 4), (1, 2, 4))
    """
    collector = Collector(
        model,
        segments=Segments.from_arguments(segment_bounds, segment_ids),
        layers=layers,
        rows=_row_range(queries),
        top=check_int("top_k", top_k, minimum=0),
        key_mass=_flag("key_mass", key_mass),
        kind=None if kind is None else _kind(kind),
        stop=_flag("stop", stop),
    )
    if any(other.names.keys() & collector.names.keys() for other in _active.get()):
        raise ModelError(f"model={type(model).__name__} is being read already; leave that block first")
    token = _active.set((*_active.get(), collector))
    try:
        yield collector.stats_record
    except _EnoughRead as enough:
        if enough.collector is not collector:
            raise
    finally:
        _active.reset(token)
    collector.check_attention()


_active: ContextVar[tuple[Collector, ...]] = ContextVar("keywise_readings", default=())


def collector_of(module: Any) -> Collector | None:
    """Give the collector that reads this attention layer now, None when nobody does."""
    return next((collector for collector in _active.get() if module in collector.names), None)


class _EnoughRead(BaseException):
    """Leaves a model once what a collector was asked to read has been read; no error for its code to catch."""

    def __init__(self, collector: Collector) -> None:
        super().__init__()
        self.collector = collector


@dataclass(frozen=True, eq=False)
class Plan:
    """What to read in one call, and where it belongs."""

    want: StatsRequest
    record: dict[str, Any]
    present: Any
    """The segments that `want.segments` numbers 0, 1, ...; None without segments."""


class Collector:
    """The choices of one `reading` block and what it has collected."""

    def __init__(
        self,
        model: Any,
        *,
        segments: Segments | None,
        layers: Iterable[int] | None,
        rows: int | tuple[int, int | None],
        top: int,
        key_mass: bool,
        kind: str | None,
        stop: bool,
    ) -> None:
        self.names = named_modules(model)
        self._parts = parts_among(self.names)
        self.check_attention()
        self.stats_record = StatsRecord()
        self._segments, self._rows, self._top, self._key_mass, self._kind = segments, rows, top, key_mass, kind
        self._layers = None if layers is None else self._known(layers)
        if stop and not self._layers:
            raise OptionError(f"stop=True with layers={layers}: name the layers after which to stop")
        self._wanted = set(self._layers or ()) if stop else None
        self._calls: Counter[str] = Counter()
        self._first_query: dict[str, int] = {}

    def _known(self, layers: Iterable[int]) -> frozenset[int]:
        if isinstance(layers, (int, str)) or not isinstance(layers, Iterable):
            raise DtypeError(f"layers={layers!r}: layers are several whole numbers, such as [0, 1] or range(4)")
        chosen = {check_int("layers", layer, minimum=0) for layer in layers}
        found = (_layer(module, name) for module, name in self.names.items())
        known = {layer for layer in found if layer is not None}
        if unknown := sorted(chosen - known):
            raise OptionError(f"layers={sorted(chosen)}: the model has no layer {unknown[0]}; it has {sorted(known)}")
        return frozenset(chosen)

    def check_attention(self) -> None:
        """Refuse a model that attends otherwise: nothing of it can be read."""
        names = {part.config._attn_implementation for part in self._parts}
        if NAME not in names:
            raise ModelError(
                f"model={type(self._parts[0]).__name__} attends by {sorted(names)}, of which nothing can be read; "
                "call keywise.hf.use(model) first"
            )

    def plan(self, module: Any, *, queries: int, keys: int, first_query: int, first_key: int) -> Plan | None:
        """Say what to read in this call of a layer, None for nothing."""
        name = self.names[module]
        layer, kind = _layer(module, name), "cross" if _CROSS.search(name) else "self"
        step = self._calls[name]
        self._calls[name] += 1
        stack = re.split(r"\.\d+\.", name, maxsplit=1)[0]
        if kind == "self":
            self._first_query[stack] = first_query
        else:
            # The other side's keys say nothing about where the queries stand; the self-attention before it knew.
            first_query = self._first_query.get(stack, 0)
        if (self._kind not in (None, kind)) or (self._layers is not None and layer not in self._layers):
            return None
        first_row, last_row = self._rows_of_call(first_query, queries)
        if first_row == last_row:
            return None
        ids, present = None, None
        if self._segments is not None:
            ids, present = self._segments.of_keys(name, first_key, keys)
        return Plan(
            want=StatsRequest(top_k=self._top, segment_ids=ids, key_mass=self._key_mass, queries=(first_row, last_row)),
            record={
                "name": name,
                "layer": layer,
                "kind": kind,
                "step": step,
                "queries": (first_query + first_row, first_query + last_row),
                "first_key": first_key,
            },
            present=present,
        )

    def _rows_of_call(self, first_query: int, queries: int) -> tuple[int, int]:
        if isinstance(self._rows, int):
            return max(queries - self._rows, 0), queries
        start, stop = self._rows
        first = min(max(start - first_query, 0), queries)
        last = queries if stop is None else min(max(stop - first_query, first), queries)
        return first, last

    def keep(self, plan: Plan, found: AttentionStats) -> Any:
        """Add a reading to the collection and give its output back."""
        mass = found.segment_mass
        if self._segments is not None and (mass is None or mass.shape[-1] < self._segments.count):
            mass = found.lse.new_zeros((*found.lse.shape, self._segments.count))
            if found.segment_mass is not None:
                mass[..., plan.present] = found.segment_mass
        kept = {field.name: getattr(found, field.name) for field in fields(found)} | {
            "output": None,
            "segment_mass": mass,
        }
        self.stats_record._records.append(LayerStats(**plan.record, stats=AttentionStats(**kept)))
        if found.output.nbytes >= LARGE_BYTES:
            _give_back_free_memory()
        if self._wanted is not None:
            self._wanted.discard(plan.record["layer"])
            if not self._wanted:
                raise _EnoughRead(self)
        return found.output


class Segments:
    """Segments over token positions, whatever part of the keys a call sees."""

    def __init__(self, ids: Any) -> None:
        self._ids = ids
        self.count = int(self._ids.max()) + 1
        self._last: tuple[tuple[int, int], tuple[Any, Any]] | None = None

    @classmethod
    def from_arguments(cls, bounds: Any, ids: Any) -> Segments | None:
        """Return the segments that `record_stats` was asked for, None for none."""
        if bounds is None and ids is None:
            return None
        if bounds is not None and ids is not None:
            raise OptionError("segment_bounds", "cannot be combined with segment_ids", remedy="give one of them")
        name = "segment_ids" if bounds is None else "segment_bounds"
        data = np.asarray(ids if bounds is None else bounds)
        if data.ndim != 1 or data.size == 0:
            raise ShapeError(name, "must have one axis that is not empty", got=list(data.shape))
        if data.dtype == np.bool_ or not np.issubdtype(data.dtype, np.integer):
            raise DtypeError(name, "must hold integers", got=str(data.dtype))
        if bounds is None:
            if data.min() < -1:
                raise OptionError(name, "must be 0 or more, or -1 for none", got=int(data.min()))
            return cls(data)
        if data.size < 2 or data[0] < 0 or not (np.diff(data) > 0).all():
            raise OptionError(name, "must be two or more increasing positions from 0", got=data.tolist())
        return cls(np.repeat(np.arange(-1, data.size - 1), np.diff(data, prepend=0)))

    def of_keys(self, name: str, first_key: int, keys: int) -> tuple[Any, Any]:
        """Give ids for the keys of a call, numbered without gaps, and the segments that these ids stand for."""
        if first_key + keys < self._ids.size:
            raise ShapeError(
                f"the segments cover {self._ids.size} tokens and {name} sees {first_key + keys} keys; give segments of its "
                'keys only (kind="self" or "cross" chooses the attention they are meant for)'
            )
        # The layers of one step mostly see the same keys.
        if self._last is None or self._last[0] != (first_key, keys):
            ids = np.full(keys, -1, np.int64)
            known = self._ids[first_key : first_key + keys]
            ids[: known.size] = known
            present = np.unique(ids[ids >= 0])
            numbered = np.where(ids < 0, -1, np.searchsorted(present, ids))
            self._last = (first_key, keys), ((numbered, present) if present.size else (None, None))
        return self._last[1]


def _give_back_free_memory() -> None:
    """Return the holes between live tensors to the system, where the C library can (glibc).

    What is kept lies on the heap between the model's large temporary tensors, which keeps the heap from shrinking
    (`keywise bench memory` shows the peaks).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _layer(module: Any, name: str) -> int | None:
    number = vars(module).get("layer_idx")
    if isinstance(number, int):
        return number
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise DtypeError(f"{name}={value!r}: {name} is True or False")
    return value


def _kind(name: str) -> str:
    if name not in _KINDS:
        raise OptionError(f"kind={name!r}: kind is 'self' or 'cross', None for both")
    return name


def _row_range(rows: int | slice | range | None) -> int | tuple[int, int | None]:
    if rows is None:
        return 0, None
    if not isinstance(rows, (slice, range)):
        return check_int("rows", rows, minimum=1)
    start, stop = check_int("rows.start", rows.start or 0, minimum=0), rows.stop
    if rows.step not in (None, 1):
        raise OptionError(f"rows={rows}: rows are consecutive; use a step of 1")
    return start, None if stop is None else check_int("rows.stop", stop, minimum=0)
