"""Recording of the weights of chosen queries and keys while a transformers model runs."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from keywise.attention.mask import Mask
from keywise.attention.weights import WeightsBlock, attention_weights
from keywise.errors import DtypeError, ModelError, OptionError
from keywise.hf.parts import ATTENTION_NAME, name_modules, select_parts
from keywise.hf.recording import is_in_backward
from keywise.util.checks import check_int

_active: ContextVar[tuple[BlockRecorder, ...]] = ContextVar("keywise_active_block_recorders", default=())

# Of all threads and tasks: a compiled graph cannot record.
_open_recorders: list[BlockRecorder] = []
_open_recorders_lock = threading.Lock()


@contextmanager
def record_weights(
    model: Any,
    layer: str,
    *,
    heads: Iterable[int] | None = None,
    queries: slice | None = None,
    keys: slice | None = None,
) -> Iterator[list[WeightsBlock]]:
    """Record the weights of one layer on chosen keys while the ``with`` block runs.

    Weights are exact under the softmax over all keys, and memory is that of the block: see `keywise.attention_weights`.
    Only calls made in the thread (or task) that opened the block are recorded; a warning tells of a block without any.
    Weights are those before dropout.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A model that attends with keywise: see `keywise.hf.use`.
    layer : str
        The qualified name of an attention layer, as `LayerStats.name` has it (``"model.layers.3.self_attn"``).
    heads : iterable of int, optional
        Query heads; default all.
    queries, keys : slice, optional
        Token positions, padding counted, without a step and 0 or more; default all. Of each call, the part that it has.

    Yields
    ------
    list of WeightsBlock
        One per call with queries and keys of the block; `queries` and `keys` are token positions, and the arrays are
        torch's. It grows while the ``with`` block runs.

    Raises
    ------
    ModelError
        The model does not attend with keywise.
    DtypeError, OptionError
        There is no such layer or head, or a slice cannot be used.

    Examples
    --------
    >>> import torch, keywise.hf
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> model = keywise.hf.use(LlamaForCausalLM(small).eval())
    >>> block = {"heads": [1], "queries": slice(2, 4), "keys": slice(0, 3)}
    >>> with torch.no_grad(), keywise.hf.record_weights(model, "model.layers.0.self_attn", **block) as blocks:
    ...     _ = model(torch.tensor([[5, 6, 7, 8]]))
    >>> blocks[0].queries, tuple(blocks[0].weights.shape)
    ((2, 4), (1, 1, 2, 3))
    """
    recorder = _make_recorder(model, layer, heads, queries, keys)
    token = _active.set((*_active.get(), recorder))
    with _open_recorders_lock:
        _open_recorders.append(recorder)
    try:
        yield recorder.blocks
    finally:
        _active.reset(token)
        with _open_recorders_lock:
            _open_recorders.remove(recorder)
    if not recorder.calls:
        reason = "it did not run in this thread, or is no attention layer"
        warnings.warn(
            f"keywise recorded nothing: {layer} did not call keywise inside record_weights; {reason}", stacklevel=3
        )


def has_open_recorders() -> bool:
    """Return whether weights of any model are being recorded, in whichever thread."""
    return bool(_open_recorders)


def find_recorders(module: Any) -> list[BlockRecorder]:
    """Return the recorders of an attention layer.

    Parameters
    ----------
    module : torch.nn.Module
        The attention layer.
    """
    return [recorder for recorder in _active.get() if recorder.module is module]


@dataclass(eq=False)
class BlockRecorder:
    """Collects the weights of one layer.

    Attributes
    ----------
    module
        The layer.
    name
        Its name, for errors.
    heads
        Numbers of the query heads; None for all.
    queries, keys
        The first token position and the one after the last; None for no limit.
    blocks
        What was recorded.
    calls
        Number of calls of the layer, with queries and keys of the block or without.
    """

    module: Any
    name: str
    heads: tuple[int, ...] | None
    queries: tuple[int, int | None]
    keys: tuple[int, int | None]
    blocks: list[WeightsBlock] = field(default_factory=list)
    calls: int = 0

    def add(self, query: Any, key: Any, options: dict[str, Any], *, first_query: int, first_key: int) -> None:
        """Record one call of the layer.

        Parameters
        ----------
        query, key : tensor
            As attention gets them.
        options : dict
            Mask, bias, scale, softcap and sinks of `keywise.attend`.
        first_query, first_key : int
            Token positions of the first query and key.

        Raises
        ------
        OptionError
            The layer does not have such a head.
        """
        from keywise.hf.joined import get_dense

        if is_in_backward():
            return  # checkpointed gradients repeat a call that is recorded already
        self.calls += 1
        queries = _select(self.queries, first_query, query.shape[2])
        keys = _select(self.keys, first_key, key.shape[2])
        if queries is None or keys is None:
            return
        query, key = query.detach(), get_dense(key).detach()
        if self.heads is not None:
            query, key, options = _select_heads(self.name, self.heads, query, key, options)
        options = {name: value.detach() if hasattr(value, "detach") else value for name, value in options.items()}
        block = attention_weights(query, key, queries=queries, keys=keys, **options)
        first, last = block.queries
        begin, end = block.keys
        self.blocks.append(
            replace(
                block,
                queries=(first + first_query, last + first_query),
                keys=(begin + first_key, end + first_key),
            )
        )


def _make_recorder(
    model: Any, layer: str, heads: Iterable[int] | None, queries: slice | None, keys: slice | None
) -> BlockRecorder:
    names = name_modules(model)
    parts = select_parts(names)
    if ATTENTION_NAME not in {part.config._attn_implementation for part in parts}:
        raise ModelError("model", "must attend with keywise", remedy="call keywise.hf.use(model) first")
    modules = {name: module for module, name in names.items()}
    if layer not in modules:
        similar = [name for name, module in modules.items() if "Attention" in type(module).__name__]
        raise OptionError("layer", "must name an attention layer of the model", got=layer, remedy=_list_names(similar))
    if heads is not None and (isinstance(heads, (int, str)) or not isinstance(heads, Iterable)):
        raise DtypeError("heads", "must be several integers, such as [0, 1] or range(4)", got=heads)
    numbers = None if heads is None else tuple(check_int("heads", head, minimum=0) for head in heads)
    if numbers == ():
        raise OptionError("heads", "must hold a head", got=heads)
    return BlockRecorder(modules[layer], layer, numbers, _check_range("queries", queries), _check_range("keys", keys))


def _list_names(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"there are {len(names)} such as {shown}" if len(names) > 3 else f"there are {shown}"


def _check_range(name: str, value: slice | None) -> tuple[int, int | None]:
    if value is None:
        return 0, None
    if not isinstance(value, slice):
        raise DtypeError(name, "must be a slice of token positions, such as slice(0, 64)", got=value)
    first = 0 if value.start is None else check_int(f"{name}.start", value.start, minimum=0)
    last = None if value.stop is None else check_int(f"{name}.stop", value.stop, minimum=0)
    if value.step not in {None, 1} or (last is not None and last <= first):
        raise OptionError(name, "must be a slice without step that is not empty", got=value)
    return first, last


def _select(positions: tuple[int, int | None], first: int, count: int) -> slice | None:
    """Return the part of a call's tokens that lies in a range of positions, or None."""
    begin = max(positions[0] - first, 0)
    end = count if positions[1] is None else min(positions[1] - first, count)
    return slice(begin, end) if begin < end else None


def _select_heads(
    layer: str, heads: tuple[int, ...], query: Any, key: Any, options: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    numbers, count = list(heads), query.shape[1]
    if max(numbers) >= count:
        raise OptionError("heads", f"must be between 0 and {count - 1}, the query heads of {layer}", got=numbers)
    group = count // key.shape[1]
    selected = dict(options)
    mask, bias, sinks = options["mask"], options["bias"], options["sinks"]
    if isinstance(mask, Mask) and mask.allowed is not None and mask.allowed.ndim == 4 and mask.allowed.shape[1] > 1:
        selected["mask"] = replace(mask, allowed=mask.allowed[:, numbers])
    if bias is not None and bias.ndim == 4 and bias.shape[1] > 1:
        selected["bias"] = bias[:, numbers]
    if sinks is not None:
        selected["sinks"] = sinks[numbers]
    return query[:, numbers], key[:, [number // group for number in numbers]], selected
