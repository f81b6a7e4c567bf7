"""KVCache: the keys and values of every layer, appended to, attended to, cut and shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keywise.attention.arrays import FLOATS, HostArray, as_host_array
from keywise.attention.mask import Mask
from keywise.attention.operation import Chunks, StatsRequest, run
from keywise.attention.problem import Chunk
from keywise.attention.stats import AttentionStats
from keywise.cache.layer import Layer
from keywise.cache.quantised import quantised
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import check_int


class KVCache:
    """Keep the keys and values of every layer; appending copies nothing of what is there, forking nothing at all.

    A layer is an ordered list of pieces: read-only ones, shared with forks and files, and one private piece that
    grows. Attention reads them where they are, with the result of one array, bit for bit.

    Parameters
    ----------
    layers : int
        Number of layers.
    windows : sequence of (int or None), optional
        Per layer, the keys to the left of its own position that a query sees (``Mask.window[0]``): older keys are
        dropped as tokens are appended. None keeps all, for that layer or for every layer.
    dtype : str, optional
        ``"int8"`` keeps keys and values as whole multiples of a float32 scale per token and head: half the bytes of
        bfloat16, the error of an element at most 1/254 of the largest of its token and head. Default: as they come.

    Raises
    ------
    DtypeError, OptionError
        When an argument is of the wrong type or out of range.

    Examples
    --------
    >>> import numpy as np, keywise as kw
    >>> cache = kw.KVCache(layers=1)
    >>> x = np.random.default_rng(0).normal(size=(1, 2, 5, 8)).astype(np.float32)
    >>> cache.append(0, x[:, :, :4], x[:, :, :4])
    >>> fork = cache.fork()
    >>> cache.append(0, x[:, :, 4:], x[:, :, 4:])
    >>> len(cache), len(fork)
    (5, 4)
    >>> bool(np.array_equal(cache.attend(0, x[:, :, 4:]), kw.attend(x[:, :, 4:], x, x)))
    True
    """

    def __init__(self, layers: int, *, windows: Sequence[int | None] | None = None, dtype: str | None = None) -> None:
        count = check_int("layers", layers, minimum=1)
        if dtype not in {None, "int8"}:
            raise OptionError(f"dtype={dtype!r}: a cache keeps keys and values as they come (None) or as 'int8'")
        self._dtype = dtype
        self._layers = [Layer() for _ in range(count)]
        if windows is not None:
            self.windows = tuple(windows)

    @classmethod
    def of_layers(cls, layers: Sequence[Layer], *, dtype: str | None = None) -> KVCache:
        """Make a cache of layers that are there already."""
        cache = cls(len(layers), dtype=dtype)
        cache._layers = list(layers)
        return cache

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._layers)

    @property
    def dtype(self) -> str | None:
        """``"int8"``, or None where keys and values are kept as they come."""
        return self._dtype

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Per layer, the keys kept to the left of the next query; None keeps all. What was dropped does not return."""
        return tuple(layer.window for layer in self._layers)

    @windows.setter
    def windows(self, windows: Sequence[int | None]) -> None:
        if len(windows) != self.layers:
            raise OptionError(f"windows={windows}: it needs one entry per layer: {self.layers}")
        checked = [None if window is None else check_int("windows", window, minimum=0) for window in windows]
        for layer, window in zip(self._layers, checked, strict=True):
            layer.window = window

    def __len__(self) -> int:
        """Give the number of tokens that every layer in use holds, dropped ones included."""
        return min((layer.tokens for layer in self._layers if layer.tokens), default=0)

    def __repr__(self) -> str:
        return f"KVCache({self.layers} layers, {len(self)} tokens)"

    def tokens(self, layer: int) -> int:
        """Give the number of tokens appended to a layer so far, dropped ones included."""
        return self._layer(layer).tokens

    def first_key(self, layer: int) -> int:
        """Give the position of the first key that a layer still holds."""
        return self._layer(layer).first

    def chunks(self, layer: int) -> tuple[Chunk, ...]:
        """Give a layer's keys and values [batch, heads, tokens, head_dim] piece by piece, in order, without a copy.

        They are views that hold until the cache changes, and are not to be written to. bfloat16 comes as uint16;
        `keywise.attention.arrays.give` makes torch tensors of them.
        """
        return self._layer(layer).chunks()

    def append(self, layer: int, key: Any, value: Any) -> None:
        """Add the keys and values of new tokens behind the last ones of a layer.

        Parameters
        ----------
        layer : int
            Number of the layer, from 0.
        key : [B, Hkv, T, D]
            NumPy array, torch CPU tensor or DLPack array; every append to a layer has the same B, Hkv, D and dtype
            (over int8 keys any dtype).
        value : [B, Hkv, T, Dv]

        Raises
        ------
        ShapeError, DtypeError, OptionError, TargetError
            Naming the argument, its value and what would work; the cache is then as before.
        """
        into = self._layer(layer)
        chunk = Chunk(_tokens("key", key), _tokens("value", value))
        if chunk.key.dtype != chunk.value.dtype:
            raise DtypeError(f"value has dtype {chunk.value.dtype} and key has {chunk.key.dtype}; the two share one")
        if chunk.key.data.shape[:3] != chunk.value.data.shape[:3]:
            raise ShapeError(
                f"key has shape {list(chunk.key.data.shape)} and value has {list(chunk.value.data.shape)}; "
                "batch, heads and tokens must agree"
            )
        if self._dtype == "int8":
            chunk = Chunk(quantised("key", chunk.key), quantised("value", chunk.value))
        if (held := into.held) is not None:
            _fit(layer, held, chunk)
        if chunk.tokens:
            into.append(chunk)

    def attend(
        self,
        layer: int,
        query: Any,
        *,
        mask: Any = None,
        bias: Any = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Any = None,
    ) -> Any:
        """Compute attention of some queries over a layer, as `keywise.attend` does over one array.

        Parameters
        ----------
        layer : int
            Number of the layer.
        query : [B, Hq, Q, D]
            Of the dtype of the keys; over int8 keys any.
        mask, bias, scale, softcap, sinks
            As in `keywise.attend`. Positions in a `Mask` count from the very first token; a layer with a window is
            always masked by it. Arrays (a boolean mask, bias) cover the keys that are held, from `first_key(layer)`.

        Returns
        -------
        [B, Hq, Q, Dv]

        Raises
        ------
        ShapeError, DtypeError, OptionError, TargetError
            Also when a query would see keys that the window has dropped.
        """
        arguments = self._arguments(layer, query, mask)
        return run(**arguments, bias=bias, scale=scale, softcap=softcap, sinks=sinks)

    def attention_stats(
        self,
        layer: int,
        query: Any,
        *,
        mask: Any = None,
        bias: Any = None,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: Any = None,
        top_k: int = 8,
        segment_bounds: Any = None,
        segment_ids: Any = None,
        query_weights: Any = None,
    ) -> AttentionStats:
        """Compute attention over a layer and, in the same pass, which keys mattered, as `keywise.read` does.

        Parameters
        ----------
        layer, query, mask, bias, scale, softcap, sinks
            As in `KVCache.attend`.
        top_k, segment_bounds, segment_ids, query_weights
            As in `keywise.read`. Keys are numbered from the first one held, at position `first_key(layer)`.
        """
        want = StatsRequest(
            top_k=top_k, segment_bounds=segment_bounds, segment_ids=segment_ids, query_weights=query_weights
        )
        arguments = self._arguments(layer, query, mask)
        stats = run(**arguments, bias=bias, scale=scale, softcap=softcap, sinks=sinks, stats=want)
        assert isinstance(stats, AttentionStats)
        return stats

    def truncate(self, tokens: int) -> None:
        """Forget all tokens from a position on, in every layer; nothing is copied.

        Layers that nothing was ever appended to are left alone.

        Raises
        ------
        OptionError
            When a layer has fewer tokens, or its window has dropped keys that the next token would see.
        """
        tokens = check_int("tokens", tokens, minimum=0)
        used = [(number, layer) for number, layer in enumerate(self._layers) if layer.tokens]
        for number, layer in used:
            if layer.tokens < tokens:
                raise OptionError(f"tokens={tokens}: layer {number} has {layer.tokens} tokens only")
            if layer.tokens > tokens and layer.misses(tokens):
                raise OptionError(
                    f"tokens={tokens}: the window of layer {number} has dropped the keys before position "
                    f"{layer.first}; keep a fork from before, or use no windows"
                )
        for _, layer in used:
            layer.truncate(tokens)

    def fork(self) -> KVCache:
        """Give a cache with the same tokens that goes its own way from here; nothing is copied."""
        return KVCache.of_layers([layer.fork() for layer in self._layers], dtype=self._dtype)

    def select(self, items: Any) -> None:
        """Make the batch of some of its items: for beams, or to repeat or drop items.

        Parameters
        ----------
        items : whole numbers
            Item i of the new batch is item ``items[i]`` of the old one; items may repeat or be left out. What a batch
            of one shares stays one in memory however often it is repeated.

        Raises
        ------
        DtypeError, OptionError
            When items are not whole numbers below the batch size.
        """
        chosen = np.asarray(items)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not chosen.size:
            raise DtypeError(f"items={items!r}: items is a row of one or more whole numbers")
        batches = {chunk.key.data.shape[0] for layer in self._layers for chunk in layer.chunks()[:1]}
        for batch in batches:
            if chosen.min() < 0 or chosen.max() >= batch:
                raise OptionError(f"items={chosen.tolist()}: the batch has items 0 to {batch - 1}")
        for layer in self._layers:
            layer.select(chosen)

    def _layer(self, number: int) -> Layer:
        return self._layers[check_int("layer", number, minimum=0, maximum=self.layers - 1)]

    def _arguments(self, number: int, query: Any, mask: Any) -> dict[str, Any]:
        layer = self._layer(number)
        chunks = layer.chunks()
        if not chunks:
            raise OptionError(f"layer={number} holds no keys; append some first")
        taken = as_host_array("query", query)
        if layer.window is not None:
            mask = _narrowed(mask, layer.window)
        if layer.first:
            _check_reach(number, layer, mask, taken)
        keys, values = zip(*chunks, strict=True)
        return {
            "query": taken, "key": Chunks(keys), "value": Chunks(values), "mask": mask, "first_key": layer.first
        }  # fmt: skip


def _tokens(name: str, array: Any) -> HostArray:
    taken = as_host_array(name, array)
    if taken.dtype not in FLOATS:
        raise DtypeError(f"{name} has dtype {taken.dtype}; a cache takes {', '.join(FLOATS)}")
    if taken.data.ndim != 4 or 0 in (taken.data.shape[0], taken.data.shape[1], taken.data.shape[3]):
        raise ShapeError(f"{name} has shape {list(taken.data.shape)}; it needs [batch, heads, tokens, head_dim]")
    return taken


def _fit(layer: int, held: Chunk, new: Chunk) -> None:
    for name, old, array in zip(("key", "value"), held, new, strict=True):
        if array.dtype != old.dtype:
            raise DtypeError(f"{name} has dtype {array.dtype} and layer {layer} holds {old.dtype}; they must agree")
        wanted = [*old.data.shape[:2], array.data.shape[2], old.data.shape[3]]
        if list(array.data.shape) != wanted:
            raise ShapeError(f"{name} has shape {list(array.data.shape)}; for layer {layer} it needs {wanted}")


def _narrowed(mask: Any, window: int) -> Mask:
    rule = mask if isinstance(mask, Mask) else Mask(allowed=mask)
    left, right = (None, None) if rule.window is None else rule.window
    return replace(rule, window=(window if left is None else min(left, window), right))


def _check_reach(number: int, layer: Layer, mask: Any, query: HostArray) -> None:
    """Refuse queries that would see keys which the window has dropped."""
    remedy = f"layer {number} holds the keys from position {layer.first} on; use a cache without windows"
    rule = mask if isinstance(mask, Mask) else Mask()
    if rule.keep_first:
        raise OptionError(f"mask.keep_first={rule.keep_first}: {remedy}")
    left = None if rule.window is None else rule.window[0]
    length = layer.tokens if rule.lengths is None else int(np.min(np.asarray(rule.lengths)))
    earliest = 0 if left is None else length - query.data.shape[2] - left
    if earliest < layer.first:
        raise OptionError(
            f"the first of {query.data.shape[2]} queries sees keys from position {max(earliest, 0)} on, and {remedy}"
        )
