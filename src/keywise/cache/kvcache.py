"""`KVCache`: the keys and values of every layer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from keywise.attention.arrays import HostArray, as_host_array
from keywise.attention.checks import as_float_array
from keywise.attention.mask import Mask
from keywise.attention.operation import Chunks, StatsRequest, run
from keywise.attention.problem import Chunk
from keywise.attention.stats import AttentionStats
from keywise.cache.int8 import quantise
from keywise.cache.layer import Layer
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.util.checks import check_int


class KVCache:
    """Store the keys and values of every layer.

    Appending copies no past tokens, and forking copies nothing.

    A layer is an ordered list of chunks: read-only ones, shared with forks and files, and one private chunk that grows.
    Attention reads the chunks in place; the result has the same bits as over one array.

    Parameters
    ----------
    layers : int
        Number of layers.
    windows : sequence of (int or None), optional
        Per layer, the number of keys to the left of its own position that a query sees (``Mask.window[0]``); older keys
        are dropped as tokens are appended. None drops no keys of that layer, or of every layer.
    dtype : str, optional
        ``"int8"`` stores keys and values as multiples of a float32 scale per token and head. That is half the bytes of
        bfloat16, with an error of at most 1/254 of the largest element of the token and head. Default: the dtype of
        what is appended.

    Raises
    ------
    DtypeError
        An argument has the wrong type.
    OptionError
        An argument is out of range.

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
            raise OptionError("dtype", "must be None or 'int8'", got=dtype)
        self._dtype = dtype
        self._layers = [Layer() for _ in range(count)]
        if windows is not None:
            self.windows = tuple(windows)

    @classmethod
    def from_layers(cls, layers: Sequence[Layer], *, dtype: str | None = None) -> KVCache:
        """Return a cache of existing layers.

        Parameters
        ----------
        layers : sequence of keywise.cache.layer.Layer
            One or more.
        dtype : str, optional
            ``"int8"`` if the layers are in int8.

        Examples
        --------
        >>> from keywise.cache.kvcache import KVCache
        >>> from keywise.cache.layer import Layer
        >>> KVCache.from_layers([Layer(), Layer(window=4)]).windows
        (None, 4)
        """
        cache = cls(len(layers), dtype=dtype)
        cache._layers = list(layers)
        return cache

    @property
    def layers(self) -> int:
        """Number of layers.

        Examples
        --------
        >>> import keywise as kw
        >>> kw.KVCache(layers=2).layers
        2
        """
        return len(self._layers)

    @property
    def dtype(self) -> str | None:
        """``"int8"``, or None where keys and values are stored in the dtype of the append.

        Examples
        --------
        >>> import keywise as kw
        >>> kw.KVCache(layers=2, dtype="int8").dtype
        'int8'
        """
        return self._dtype

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Number of keys to the left of the next query, per layer; None for all.

        Setting it changes what later appends drop; dropped keys do not come back.

        Raises
        ------
        DtypeError, OptionError
            Setting something else than one window per layer.

        Examples
        --------
        >>> import keywise as kw
        >>> cache = kw.KVCache(layers=2, windows=[4, None])
        >>> cache.windows = [None, None]
        >>> cache.windows
        (None, None)
        """
        return tuple(layer.window for layer in self._layers)

    @windows.setter
    def windows(self, windows: Sequence[int | None]) -> None:
        if len(windows) != self.layers:
            raise OptionError("windows", f"must have one entry per layer, {self.layers}", got=windows)
        checked = [None if window is None else check_int("windows", window, minimum=0) for window in windows]
        for layer, window in zip(self._layers, checked, strict=True):
            layer.window = window

    def __len__(self) -> int:
        """Return the number of tokens that every layer in use has, dropped ones included."""
        return min((layer.tokens for layer in self._layers if layer.tokens), default=0)

    def __repr__(self) -> str:
        return f"KVCache({self.layers} layers, {len(self)} tokens)"

    def tokens(self, layer: int) -> int:
        """Return the number of tokens appended to a layer, dropped ones included.

        Parameters
        ----------
        layer : int
            Number of the layer, from 0.

        Returns
        -------
        int
            The position of the next token.

        Raises
        ------
        DtypeError, OptionError
            There is no such layer.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=2)
        >>> cache.append(1, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> cache.tokens(0), cache.tokens(1)
        (0, 3)
        """
        return self._get_layer(layer).tokens

    def first_key(self, layer: int) -> int:
        """Return the position of the first key of a layer that was not dropped.

        Parameters
        ----------
        layer : int
            Number of the layer, from 0.

        Returns
        -------
        int
            0 where nothing was dropped.

        Raises
        ------
        DtypeError, OptionError
            There is no such layer.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1, windows=[2])
        >>> for _ in range(2):
        ...     cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> cache.first_key(0)
        1
        """
        return self._get_layer(layer).first_key

    def chunks(self, layer: int) -> tuple[Chunk, ...]:
        """Return the keys and values of a layer as views, chunk by chunk in order.

        The views are valid until the cache changes and must not be written to. bfloat16 is stored as uint16;
        `keywise.attention.arrays.to_library` converts to torch tensors.

        Parameters
        ----------
        layer : int
            Number of the layer, from 0.

        Returns
        -------
        tuple of Chunk
            ``chunk.key.data`` and ``chunk.value.data`` are arrays [batch, heads, tokens, head_dim].

        Raises
        ------
        DtypeError, OptionError
            There is no such layer.
        FormatError
            The layer comes from a file and is damaged.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> [chunk.key.data.shape for chunk in cache.chunks(0)]
        [(1, 2, 3, 8)]
        """
        return self._get_layer(layer).chunks()

    def append(self, layer: int, key: Any, value: Any) -> None:
        """Append the keys and values of new tokens to a layer.

        Parameters
        ----------
        layer : int
            Number of the layer, from 0.
        key : [B, Hkv, T, D]
            NumPy array, torch CPU tensor or DLPack array; every append to a layer has the same B, Hkv, D and dtype
            (any float dtype in an int8 cache).
        value : [B, Hkv, T, Dv]
            Of the dtype of the keys.

        Raises
        ------
        ShapeError, DtypeError, OptionError, TargetError
            An argument does not fit; the cache is unchanged.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> len(cache)
        3
        """
        target = self._get_layer(layer)
        chunk = Chunk(_check_tokens("key", key), _check_tokens("value", value))
        if chunk.key.dtype != chunk.value.dtype:
            raise DtypeError("value", f"must have the dtype of key, {chunk.key.dtype}, got {chunk.value.dtype}")
        if chunk.key.data.shape[:3] != chunk.value.data.shape[:3]:
            raise ShapeError(
                "value",
                "must have the batch, heads and tokens of key, "
                f"{list(chunk.key.data.shape[:3])}, got {list(chunk.value.data.shape[:3])}",
            )
        if self._dtype == "int8":
            chunk = Chunk(quantise("key", chunk.key), quantise("value", chunk.value))
        example = target.find_example_chunk()
        if example is not None:
            _check_like(layer, example, chunk)
        if chunk.tokens:
            target.append(chunk)

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
        """Compute attention of queries over a layer, as `keywise.attend` does over one array.

        Parameters
        ----------
        layer : int
            Number of the layer, from 0.
        query : [B, Hq, Q, D]
            Of the dtype of the keys; any float dtype in an int8 cache.
        mask, bias, scale, softcap, sinks
            As in `keywise.attend`. Positions in a `Mask` count from the very first token; a layer with a window is
            always masked by it. Arrays (a boolean mask, bias) cover the keys from `first_key(layer)` on.

        Returns
        -------
        [B, Hq, Q, Dv]
            In the array library and dtype of the query.

        Raises
        ------
        ShapeError, DtypeError, OptionError, TargetError
            As in `keywise.attend`; also if a query would see keys that the window has dropped.
        FormatError
            The layer comes from a file and is damaged.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> cache.attend(0, np.ones((1, 4, 1, 8), np.float32), mask=kw.Mask(causal=True)).shape
        (1, 4, 1, 8)
        """
        arguments = self._make_arguments(layer, query, mask)
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
        """Compute attention over a layer and its statistics, as `keywise.attention_stats` does.

        Parameters
        ----------
        layer, query, mask, bias, scale, softcap, sinks
            As in `KVCache.attend`.
        top_k, segment_bounds, segment_ids, query_weights
            As in `keywise.attention_stats`. Keys are numbered from the first one that was not dropped, at position
            `first_key(layer)`.

        Returns
        -------
        AttentionStats
            The output and which keys received the attention.

        Raises
        ------
        ShapeError, DtypeError, OptionError, TargetError, FormatError
            As in `KVCache.attend`.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.eye(4, dtype=np.float32)[None, None], np.ones((1, 1, 4, 2), np.float32))
        >>> query = np.array([[[[0, 0, 9, 0]]]], np.float32)
        >>> cache.attention_stats(0, query, top_k=1).top_keys.tolist()
        [[[[2]]]]
        """
        request = StatsRequest(
            top_k=top_k, segment_bounds=segment_bounds, segment_ids=segment_ids, query_weights=query_weights
        )
        arguments = self._make_arguments(layer, query, mask)
        stats = run(**arguments, bias=bias, scale=scale, softcap=softcap, sinks=sinks, stats=request)
        assert isinstance(stats, AttentionStats)
        return stats

    def truncate(self, tokens: int) -> None:
        """Remove all tokens from a position on, in every layer; nothing is copied.

        Layers without tokens are unchanged.

        Parameters
        ----------
        tokens : int
            Number of tokens that remain.

        Raises
        ------
        DtypeError
            The number is not an integer.
        OptionError
            A layer has fewer tokens, or its window has dropped keys that the next query would see.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> cache.truncate(2)
        >>> len(cache)
        2
        """
        tokens = check_int("tokens", tokens, minimum=0)
        used_layers = [(number, layer) for number, layer in enumerate(self._layers) if layer.tokens]
        for number, layer in used_layers:
            if layer.tokens < tokens:
                raise OptionError("tokens", f"must be at most {layer.tokens}, the tokens of layer {number}", got=tokens)
            if layer.tokens > tokens and not layer.can_truncate(tokens):
                raise OptionError(
                    "tokens",
                    f"must not need keys before position {layer.first_key}, which the window of layer {number} has "
                    "dropped",
                    got=tokens,
                    remedy="truncate a fork from before, or use no windows",
                )
        for _, layer in used_layers:
            layer.truncate(tokens)

    def fork(self) -> KVCache:
        """Return a cache with the same tokens that changes independently; nothing is copied.

        Returns
        -------
        KVCache
            Shares the memory of the tokens so far.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> fork = cache.fork()
        >>> fork.truncate(1)
        >>> len(cache), len(fork)
        (3, 1)
        """
        return KVCache.from_layers([layer.fork() for layer in self._layers], dtype=self._dtype)

    def __deepcopy__(self, _memo: dict[int, Any]) -> KVCache:
        # A copy of the arrays would lose the parts of a file that were not read yet.
        return self.fork()

    def select(self, items: Any) -> None:
        """Replace the batch by some of its items, for example in beam search.

        Parameters
        ----------
        items : integers [B]
            Item i of the new batch is item ``items[i]`` of the old one; items may repeat or be left out. A batch of one
            is repeated without a copy.

        Raises
        ------
        DtypeError, OptionError
            The items are not integers below the batch size.
        FormatError
            A layer comes from a file and is damaged.

        Examples
        --------
        >>> import numpy as np, keywise as kw
        >>> cache = kw.KVCache(layers=1)
        >>> cache.append(0, np.ones((1, 2, 3, 8), np.float32), np.ones((1, 2, 3, 8), np.float32))
        >>> cache.select([0, 0, 0])
        >>> cache.chunks(0)[0].key.data.shape
        (3, 2, 3, 8)
        """
        indices = np.asarray(items)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not indices.size:
            raise DtypeError("items", "must be a list of one or more integers", got=items)
        batches = {chunk.key.data.shape[0] for layer in self._layers for chunk in layer.chunks()[:1]}
        for batch in batches:
            if indices.min() < 0 or indices.max() >= batch:
                raise OptionError("items", f"must be between 0 and {batch - 1}", got=indices.tolist())
        for layer in self._layers:
            layer.select(indices)

    def _get_layer(self, number: int) -> Layer:
        return self._layers[check_int("layer", number, minimum=0, maximum=self.layers - 1)]

    def _make_arguments(self, number: int, query: Any, mask: Any) -> dict[str, Any]:
        """Return the arguments of `run` that describe a layer."""
        layer = self._get_layer(number)
        chunks = layer.chunks()
        if not chunks:
            raise OptionError("layer", "must have keys", got=number, remedy="append some first")
        host_query = as_host_array("query", query)
        if layer.window is not None:
            mask = _add_window(mask, layer.window)
        if layer.first_key:
            _check_dropped_keys(number, layer, mask, host_query)
        keys, values = zip(*chunks, strict=True)
        return {
            "query": host_query,
            "key": Chunks(keys),
            "value": Chunks(values),
            "mask": mask,
            "first_key": layer.first_key,
        }


def _check_tokens(name: str, array: Any) -> HostArray:
    host = as_float_array(name, array)
    shape = host.data.shape
    if host.data.ndim != 4 or 0 in (shape[0], shape[1], shape[3]):
        raise ShapeError(name, f"must have shape [batch, heads, tokens, head_dim], got {list(shape)}")
    return host


def _check_like(layer: int, example: Chunk, new: Chunk) -> None:
    """Raise an error if new tokens do not fit those of the layer."""
    for name, present, array in zip(("key", "value"), example, new, strict=True):
        if array.dtype != present.dtype:
            raise DtypeError(name, f"must have the dtype of layer {layer}, {present.dtype}, got {array.dtype}")
        batch, heads, _, width = present.data.shape
        expected = [batch, heads, array.data.shape[2], width]
        if list(array.data.shape) != expected:
            raise ShapeError(name, f"must have shape {expected} for layer {layer}, got {list(array.data.shape)}")


def _add_window(mask: Any, window: int) -> Mask:
    """Return a mask that also hides the keys outside the window."""
    rule = mask if isinstance(mask, Mask) else Mask(allowed=mask)
    left, right = (None, None) if rule.window is None else rule.window
    return replace(rule, window=(window if left is None else min(left, window), right))


def _check_dropped_keys(number: int, layer: Layer, mask: Any, query: HostArray) -> None:
    """Raise an error if a query would see keys that the window has dropped."""
    remedy = f"layer {number} has the keys from position {layer.first_key} on; use a cache without windows"
    rule = mask if isinstance(mask, Mask) else Mask()
    if rule.keep_first:
        raise OptionError("mask.keep_first", "must be 0 after keys were dropped", got=rule.keep_first, remedy=remedy)
    left = None if rule.window is None else rule.window[0]
    length = layer.tokens if rule.lengths is None else int(np.min(np.asarray(rule.lengths)))
    queries = query.data.shape[2]
    first_visible = 0 if left is None else max(length - queries - left, 0)
    if first_visible < layer.first_key:
        raise OptionError(
            "query",
            f"must not see dropped keys; the first of {queries} queries sees keys from position {first_visible} on",
            remedy=remedy,
        )
