"""Recording of attention statistics while a transformers model runs."""

from __future__ import annotations

import re
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any

from keywise.attention.stats import AttentionStats
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, ModelError, OptionError
from keywise.hf.layer_stats import LayerStats
from keywise.hf.parts import ATTENTION_NAME, name_modules, select_parts
from keywise.hf.stats_record import StatsRecord
from keywise.hf.stats_spec import StatsSpec

_CROSS_ATTENTION = re.compile(r"cross|encoder_attn|encdec", re.IGNORECASE)
_LAYER_NUMBER = re.compile(r"\.\d+\.")

_active_collectors: ContextVar[tuple[StatsCollector, ...]] = ContextVar("keywise_active_collectors", default=())

# Those of all threads and tasks, to find calls that are made elsewhere.
_open_collectors: list[StatsCollector] = []
_open_collectors_lock = threading.Lock()


@contextmanager
def record_stats(
    model: Any,
    spec: StatsSpec | None = None,
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | Mapping[int, Iterable[int]] | None = None,
    queries: int | slice | range | None = None,
    top_k: int | None = None,
    segment_bounds: Any = None,
    segment_ids: Any = None,
    key_mass: bool | None = None,
    kind: str | None = None,
    stop: bool | None = None,
    differentiable: bool | None = None,
) -> Iterator[StatsRecord]:
    """Record the attention statistics of a model while the ``with`` block runs.

    Memory per call is linear in the number of tokens. Only this model is recorded, and only calls made in the thread
    (or task) that opened the block. A warning tells of calls in another thread, and of a block without any call. To
    record a thread, start it in the context of the block:
    ``Thread(target=contextvars.copy_context().run, args=(model.generate, ids))``. With checkpointed gradients, call
    ``backward()`` inside the block; the layers that run again in it are not recorded again.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model that attends with keywise: see `keywise.hf.use`.
    spec : StatsSpec, optional
        Which statistics to record; default all layers, heads and queries.
    layers, heads, queries, top_k, segment_bounds, segment_ids, key_mass, kind, stop, differentiable
        The fields of `StatsSpec`, instead of `spec`; None for the default of the field.

    Yields
    ------
    StatsRecord
        One `LayerStats` per layer and call; it grows while the block runs.

    Raises
    ------
    ModelError
        The model does not attend with keywise, or is being recorded already.
    OptionError, DtypeError, ShapeError
        A field cannot be used (see `StatsSpec`), the model does not have such a layer or head, or both `spec` and
        keywords are passed.

    Examples
    --------
    >>> import torch, keywise.hf
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=3)
    >>> model = keywise.hf.use(LlamaForCausalLM(small).eval())
    >>> with torch.no_grad(), keywise.hf.record_stats(model, layers=[2], queries=1) as record:
    ...     _ = model(torch.tensor([[5, 6, 7, 8]]))
    >>> record[0].name, record[0].queries, tuple(record[0].stats.key_mass.shape)
    ('model.layers.2.self_attn', (3, 4), (1, 2, 4))

    A specification can be used several times:

    >>> spec = keywise.hf.StatsSpec(heads=[1], top_k=2)
    >>> with torch.no_grad(), keywise.hf.record_stats(model, spec) as record:
    ...     _ = model(torch.tensor([[5, 6, 7, 8]]))
    >>> len(record), record[0].heads, tuple(record[0].stats.top_keys.shape)
    (3, (1,), (1, 1, 4, 2))
    """
    fields = {
        "layers": layers,
        "heads": heads,
        "queries": queries,
        "top_k": top_k,
        "segment_bounds": segment_bounds,
        "segment_ids": segment_ids,
        "key_mass": key_mass,
        "kind": kind,
        "stop": stop,
        "differentiable": differentiable,
    }
    collector = StatsCollector(
        model, _merge_fields(spec, {name: value for name, value in fields.items() if value is not None})
    )
    if any(other.layer_names.keys() & collector.layer_names.keys() for other in _active_collectors.get()):
        raise ModelError(
            "model", "must not be recorded already", got=type(model).__name__, remedy="leave the other block first"
        )
    token = _active_collectors.set((*_active_collectors.get(), collector))
    with _open_collectors_lock:
        _open_collectors.append(collector)
    try:
        yield collector.record
    except _StopModel as reached:
        if reached.collector is not collector:
            raise
    finally:
        _active_collectors.reset(token)
        with _open_collectors_lock:
            _open_collectors.remove(collector)
    collector.check_attention()
    if (warning := collector.explain_missing_calls()) is not None:
        warnings.warn(warning, stacklevel=3)


def _merge_fields(spec: StatsSpec | None, fields: dict[str, Any]) -> StatsSpec:
    if spec is None:
        return StatsSpec(**fields)
    if not isinstance(spec, StatsSpec):
        raise DtypeError("spec", "must be a keywise.hf.StatsSpec", got=spec)
    if fields:
        raise OptionError("spec", f"cannot be combined with {', '.join(fields)}", remedy="put them into the StatsSpec")
    return spec


def has_open_collectors() -> bool:
    """Return whether any model is being recorded, in whichever thread."""
    return bool(_open_collectors)


def find_collector(module: Any) -> StatsCollector | None:
    """Return the collector that records an attention layer now, or None.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    """
    for collector in _active_collectors.get():
        if module in collector.layer_names:
            return collector
    if _open_collectors:
        _count_missed_call(module)
    return None


def _count_missed_call(module: Any) -> None:
    with _open_collectors_lock:
        for collector in _open_collectors:
            if module in collector.layer_names:
                collector.missed_calls += 1


def is_in_backward() -> bool:
    """Return whether this thread runs a backward pass: a layer that is called there repeats an earlier call.

    Checkpointed gradients compute activations again when they are needed.
    """
    import torch

    return bool(torch._C._current_graph_task_id() != -1)


class _StopModel(BaseException):
    """Stop a model once everything was recorded.

    It is not an Exception, so that model code does not catch it.
    """

    def __init__(self, collector: StatsCollector) -> None:
        super().__init__()
        self.collector = collector


@dataclass(frozen=True, eq=False)
class CallPlan:
    """The statistics to record in one call of a layer.

    Attributes
    ----------
    request
        The statistics to compute.
    place
        The fields of `LayerStats` that identify the call.
    present_segments
        The segments that the request numbers 0, 1, ...; None without segments.
    is_repeated
        Whether the call repeats an earlier one, which is recorded already.
    """

    request: StatsRequest
    place: dict[str, Any]
    present_segments: Any
    is_repeated: bool


class StatsCollector:
    """Plan and collect the statistics of a model's attention calls.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model that attends with keywise.
    spec : StatsSpec
        Which statistics to record.

    Raises
    ------
    ModelError
        The model does not attend with keywise.
    OptionError
        The model does not have a layer that `spec` names.
    """

    def __init__(self, model: Any, spec: StatsSpec) -> None:
        self.layer_names = name_modules(model)
        self.record = StatsRecord()
        self._spec = spec
        self._parts = select_parts(self.layer_names)
        self.check_attention()
        self._layers = None if spec.layers is None else frozenset(spec.layers)
        self._check_layers()
        self._missing_layers = set(self._layers or ()) if spec.stop else None
        self.missed_calls = 0
        self._calls: Counter[str] = Counter()
        self._first_query: dict[str, int] = {}

    def _check_layers(self) -> None:
        if self._layers is None:
            return
        numbers = {_find_layer_number(module, name) for module, name in self.layer_names.items()}
        existing = {number for number in numbers if number is not None}
        if self._layers - existing:
            raise OptionError("layers", f"must be among the model's {sorted(existing)}", got=sorted(self._layers))

    @property
    def is_differentiable(self) -> bool:
        """Whether a loss may use the statistics."""
        return self._spec.differentiable

    def check_attention(self) -> None:
        """Raise an error unless the model attends with keywise.

        Raises
        ------
        ModelError
            No part of the model attends with keywise.
        """
        names = {part.config._attn_implementation for part in self._parts}
        if ATTENTION_NAME not in names:
            raise ModelError(
                "model",
                f"must attend with keywise; {type(self._parts[0]).__name__} attends with {', '.join(sorted(names))}",
                remedy="call keywise.hf.use(model) first",
            )

    def explain_missing_calls(self) -> str | None:
        """Return a warning if the model's attention ran in another thread, or not at all; otherwise None."""
        name = type(self._parts[0]).__name__
        if self.missed_calls:
            return (
                f"keywise did not record {self.missed_calls} attention calls of {name}, which ran in another thread or "
                "task than record_stats; open record_stats there, or start the thread with "
                "target=contextvars.copy_context().run"
            )
        if not self._calls:
            return f"keywise recorded nothing: no attention layer of {name} called keywise inside record_stats"
        return None

    def plan_call(self, module: Any, *, queries: int, keys: int, first_query: int, first_key: int) -> CallPlan | None:
        """Return what to record in a call of a layer, None for nothing.

        Parameters
        ----------
        module : torch.nn.Module
            The attention layer.
        queries, keys : int
            Number of queries and keys of the call.
        first_query, first_key : int
            Token positions of the first query and key, as far as the call's mask shows them.

        Raises
        ------
        ShapeError
            The segments cover more tokens than the call has keys.
        """
        name = self.layer_names[module]
        layer = _find_layer_number(module, name)
        kind = "cross" if _CROSS_ATTENTION.search(name) else "self"
        is_repeated = is_in_backward()
        step = self._calls[name]
        if not is_repeated:
            self._calls[name] += 1
        first_query = self._locate_queries(name, kind, first_query)
        if not self._is_recorded(layer, kind):
            return None
        first, last = self._spec.select_queries(first_query, queries)
        if first == last:
            return None
        segment_ids = present_segments = None
        if self._spec.token_segments is not None:
            segment_ids, present_segments = self._spec.token_segments.number_keys(name, first_key, keys)
        return CallPlan(
            request=StatsRequest(
                top_k=self._spec.top_k,
                segment_ids=segment_ids,
                key_mass=self._spec.key_mass,
                queries=(first, last),
            ),
            place={
                "name": name,
                "layer": layer,
                "kind": kind,
                "step": step,
                "queries": (first_query + first, first_query + last),
                "first_key": first_key,
            },
            present_segments=present_segments,
            is_repeated=is_repeated,
        )

    def _locate_queries(self, name: str, kind: str, first_query: int) -> int:
        stack = _LAYER_NUMBER.split(name, maxsplit=1)[0]
        if kind == "self":
            self._first_query[stack] = first_query
            return first_query
        # The encoder's keys do not determine the position of the decoder's queries; the self-attention before it does.
        return self._first_query.get(stack, 0)

    def _is_recorded(self, layer: int | None, kind: str) -> bool:
        if self._spec.kind not in (None, kind):
            return False
        return self._layers is None or layer in self._layers

    def add(self, plan: CallPlan, stats: AttentionStats) -> Any:
        """Add the statistics of a call to the record, and return its output.

        Parameters
        ----------
        plan : CallPlan
            What `plan_call` returned for this call.
        stats : AttentionStats
            Statistics of the plan's request.

        Returns
        -------
        tensor
            `stats.output`, for the model.

        Raises
        ------
        OptionError
            The layer does not have a head that the specification names.
        """
        output = stats.output
        if plan.is_repeated:
            return output
        stats = replace(stats, output=None, segment_mass=self._number_segments(plan, stats))
        heads, stats = _select_heads(stats, self._spec.select_heads(plan.place["layer"]), plan.place["name"])
        self.record._records.append(LayerStats(**plan.place, heads=heads, stats=stats))
        if self._missing_layers is not None:
            self._missing_layers.discard(plan.place["layer"])
            if not self._missing_layers:
                raise _StopModel(self)
        return output

    def _number_segments(self, plan: CallPlan, stats: AttentionStats) -> Any:
        """Return the segment mass of every segment, 0 for those without keys in the call."""
        segments = self._spec.token_segments
        if segments is None:
            return stats.segment_mass
        if stats.segment_mass is not None and stats.segment_mass.shape[-1] == segments.count:
            return stats.segment_mass
        mass = stats.lse.new_zeros((*stats.lse.shape, segments.count))
        if stats.segment_mass is not None:
            mass[..., plan.present_segments] = stats.segment_mass
        return mass


def _select_heads(
    stats: AttentionStats, heads: tuple[int, ...] | None, layer: str
) -> tuple[tuple[int, ...], AttentionStats]:
    """Return the numbers of the selected heads, and their statistics."""
    head_count = stats.lse.shape[1]
    if heads is None:
        return tuple(range(head_count)), stats
    numbers = list(heads)
    if max(numbers, default=0) >= head_count:
        raise OptionError("heads", f"must be between 0 and {head_count - 1}, the query heads of {layer}", got=numbers)
    arrays = {field.name: getattr(stats, field.name) for field in fields(stats)}
    selected = {name: array[:, numbers] for name, array in arrays.items() if array is not None}
    return tuple(numbers), replace(stats, **selected)


def _find_layer_number(module: Any, name: str) -> int | None:
    number = vars(module).get("layer_idx")
    if isinstance(number, int):
        return number
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)
