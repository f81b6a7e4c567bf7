"""A transformers cache whose keys and values lie in a `keywise.KVCache`."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import DynamicCache

from keywise.attention.problem import Chunk
from keywise.cache import file
from keywise.cache.kvcache import KVCache
from keywise.cache.layer import slice_chunk
from keywise.errors import FormatError, ModelError, OptionError
from keywise.hf.compatibility import crops_to_length, import_internals, stores_nothing
from keywise.hf.joined import join_chunks

cache_utils = import_internals("cache_utils")


class CacheLayer(cache_utils.CacheLayerMixin):  # type: ignore[misc,name-defined]  # transformers has no types here
    """One layer of a `Cache`, over the keys and values of the `KVCache`.

    Parameters
    ----------
    number : int
        The layer's number in the `KVCache`.
    sliding_window : int or None
        Number of tokens that a query of this layer sees, its own included; None for all.
    """

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    kv: KVCache
    """The cache of this layer and all others."""

    def __init__(self, number: int, sliding_window: int | None) -> None:
        self._number = number
        self.sliding_window = sliding_window
        self.is_sliding = sliding_window is not None
        self._dtype: Any = None

    @property
    def is_initialized(self) -> bool:
        """Whether anything was appended."""
        return self.kv.tokens(self._number) > 0

    @property
    def keys(self) -> Any:
        """The stored keys [B, H, tokens, D]; None before the first append."""
        return self._make_tensors(None)[0] if self.is_initialized else None

    @property
    def values(self) -> Any:
        """The stored values [B, H, tokens, Dv]; None before the first append."""
        return self._make_tensors(None)[1] if self.is_initialized else None

    @property
    def record_past(self) -> bool:
        """Whether a sliding layer stores the tokens that its window has passed."""
        return self.kv.windows[self._number] is None

    @record_past.setter
    def record_past(self, enabled: bool) -> None:
        windows = list(self.kv.windows)
        windows[self._number] = None if enabled or self.sliding_window is None else self.sliding_window - 1
        self.kv.windows = tuple(windows)

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Do nothing: the first append allocates the memory.

        Parameters
        ----------
        key_states, value_states : tensor
            Ignored.
        """

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Append new keys and values, and return all that the new tokens see.

        Parameters
        ----------
        key_states : tensor [B, H, tokens, D]
            Keys of the new tokens.
        value_states : tensor [B, H, tokens, Dv]
            Values of the new tokens.

        Returns
        -------
        tensor [B, H, N, D], tensor [B, H, N, Dv]
        """
        self._dtype = key_states.dtype
        self.kv.append(self._number, key_states, value_states)
        visible = None if self.sliding_window is None else self.sliding_window - 1 + key_states.shape[2]
        return self._make_tensors(visible)

    def get_seq_length(self) -> int:
        """Return the number of tokens so far, those that a window has passed included."""
        return self.kv.tokens(self._number)

    def get_max_length(self) -> int:
        """Return the window of a sliding layer, -1 for no limit."""
        return -1 if self.sliding_window is None else self.sliding_window

    get_max_cache_shape = get_max_length  # its name in older versions of transformers

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys `update` will return, and the position of the first.

        Parameters
        ----------
        query_length : int
            Number of new tokens.
        """
        tokens = self.get_seq_length()
        first = 0 if self.sliding_window is None else max(tokens - self.sliding_window + 1, 0)
        return tokens - first + query_length, first

    def _make_tensors(self, last_tokens: int | None) -> tuple[Any, Any]:
        """Return keys and values of all tokens, or of the last ones, without a copy."""
        chunks = self.kv.chunks(self._number)
        first_key = chunks[0].key
        stored_dtype = "float32" if first_key.scale is not None else first_key.dtype
        dtype = self._dtype or getattr(torch, stored_dtype)
        visible = chunks if last_tokens is None else _select_last(chunks, last_tokens)
        keys, values = zip(*visible, strict=True)
        return join_chunks(keys, dtype), join_chunks(values, dtype)


def _select_last(chunks: tuple[Chunk, ...], tokens: int) -> Iterator[Chunk]:
    """Yield the chunks of the last tokens, the first of them cut if necessary."""
    surplus = sum(chunk.tokens for chunk in chunks) - tokens
    for chunk in chunks:
        if surplus < chunk.tokens:
            yield chunk if surplus <= 0 else slice_chunk(chunk, surplus, chunk.tokens)
        surplus = max(surplus - chunk.tokens, 0)


class Cache(DynamicCache):  # type: ignore[misc]  # transformers has no types here
    """A transformers cache over a `keywise.KVCache`.

    No step copies the past, and forks share it. Pass it to a model or to ``generate`` as ``past_key_values``. keywise's
    attention uses a past of several chunks (a shared document, its own continuation) in place; any other attention
    works too, with one copy per step.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's config: its number of layers, and which of them have a sliding window.
    kv : keywise.KVCache, optional
        Keys and values to continue from; default an empty cache.
    dtype : str, optional
        ``"int8"`` stores rounded values in half the bytes of bfloat16; see `keywise.KVCache`. Default: values are
        stored unchanged.

    Attributes
    ----------
    kv : keywise.KVCache
        The cache of all layers.
    reused_tokens : int
        Number of its tokens that came from `kv` or a file and were not computed by the model.

    Raises
    ------
    ModelError
        The model has layers that store more than keys and values.
    OptionError
        `dtype` differs from that of `kv`.
    FormatError
        `kv` has another number of layers than the model.

    Examples
    --------
    >>> import torch, keywise.hf
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> small = LlamaConfig(hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1)
    >>> model = keywise.hf.use(LlamaForCausalLM(small).eval())
    >>> cache = keywise.hf.Cache(model.config)
    >>> _ = model.generate(torch.tensor([[5, 6, 7]]), past_key_values=cache, max_new_tokens=2, do_sample=False)
    >>> cache.get_seq_length()
    4
    """

    __module__ = "keywise.hf"

    layers: list[Any]

    def __init__(self, config: Any, kv: KVCache | None = None, *, dtype: str | None = None) -> None:
        super().__init__(config=config)
        self.layers = [_make_layer(number, layer) for number, layer in enumerate(self.layers)]
        if kv is None:
            sliding_windows = [getattr(layer, "sliding_window", None) for layer in self.layers]
            windows = [None if window is None else window - 1 for window in sliding_windows]
            kv = KVCache(len(windows), windows=windows, dtype=dtype)
        elif dtype not in (None, kv.dtype):
            raise OptionError(
                "dtype",
                f"must be that of kv, which stores {kv.dtype or 'values unchanged'}",
                got=dtype,
                remedy="leave dtype out",
            )
        elif kv.layers != len(self.layers):
            raise FormatError(
                "kv",
                f"must have the model's {len(self.layers)} layers",
                got=kv.layers,
                remedy="it belongs to another model",
            )
        self.reused_tokens = len(kv)
        self._set_kv(kv)

    def save(self, path: str | os.PathLike[str], token_ids: Any, fingerprint: Mapping[str, str], **others: Any) -> None:
        """Write the cache to a file, atomically; see `keywise.cache.file.save`.

        Parameters
        ----------
        path : path
            The file to write or replace.
        token_ids : int array or list [N] or [B, N]
            The tokens that the model has seen, padding included. Those after the last cached one are left out.
        fingerprint : mapping
            The model, as `keywise.models.fingerprint` describes it. The keys of a decoder also depend on the encoder's
            input: add a field for it.
        **others
            `positions` and `extra`, as in `keywise.cache.file.save`.

        Raises
        ------
        FormatError, ShapeError, DtypeError, OptionError
            As `keywise.cache.file.save`.

        Examples
        --------
        >>> cache.save("chat.keywise", ids, keywise.models.fingerprint(model, tokenizer))  # doctest: +SKIP
        """
        ids = file.as_token_numbers("token_ids", token_ids)
        file.save(path, self.kv, fingerprint=fingerprint, token_ids=ids[..., : len(self.kv)], **others)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        config: Any,
        fingerprint: Mapping[str, str],
        token_ids: Any = None,
        *,
        positions: Any = None,
    ) -> Any:
        """Open a file that `save` wrote.

        Keys and values are read and verified when a layer first uses them. `reused_tokens` of the result is the number
        of its tokens that can be used.

        Parameters
        ----------
        path : path
            The file.
        config : transformers.PreTrainedConfig
            The model's config.
        fingerprint : mapping
            The model, as `keywise.models.fingerprint` describes it; every field must equal that of the file.
        token_ids : int array or list [N] or [B, N], optional
            The tokens to continue with. The cache is truncated to the prefix that they share with the file, without
            the last of them, which the model needs as input. None uses the whole file.
        positions : int array or list of that shape, optional
            As passed to `save`, if they were.

        Returns
        -------
        Cache

        Raises
        ------
        FormatError
            The file is damaged, or was made by another model, tokenizer, dtype or rotary positions.
        ShapeError, DtypeError
            `token_ids` or `positions` are not integers, or their shapes differ.
        OptionError
            A sliding layer has dropped keys that the shared tokens need.

        Examples
        --------
        >>> cache = keywise.hf.Cache.open("chat.keywise", model.config, fingerprint, ids)  # doctest: +SKIP
        >>> model.generate(ids, past_key_values=cache)  # doctest: +SKIP
        """
        if token_ids is None:
            return cls(config, file.open(path, fingerprint).cache)
        ids = file.as_token_numbers("token_ids", token_ids)
        token_positions = None if positions is None else file.as_positions(positions, ids)
        opened = file.open(path, fingerprint)
        cache = cls(config, opened.cache)
        common = opened.header.common_tokens(ids, token_positions)
        cache.truncate(max(min(common, ids.shape[-1] - 1), 0))
        return cache

    def fork(self) -> Any:
        """Return a cache that continues from the same tokens and shares their memory.

        Returns
        -------
        Cache

        Examples
        --------
        >>> answer_cache = document_cache.fork()  # doctest: +SKIP
        """
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        other._set_kv(self.kv.fork())
        return other

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        return self.fork()

    def truncate(self, tokens: int) -> None:
        """Remove all but the first tokens.

        Parameters
        ----------
        tokens : int
            Number of tokens that remain.

        Raises
        ------
        OptionError
            There are fewer tokens, or a sliding layer has dropped keys that the next token would see; after
            `activate_past_recording` such layers drop none.

        Examples
        --------
        >>> cache.truncate(100)  # doctest: +SKIP
        """
        self.kv.truncate(tokens)
        self.reused_tokens = min(self.reused_tokens, tokens)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove tokens from the end.

        Parameters
        ----------
        tokens_to_remove : int
            Their number, negative as transformers passes it. Older versions of transformers pass the number that
            remain, which is positive.

        Raises
        ------
        OptionError
            The number is positive, or the tokens cannot be removed; see `truncate`.

        Examples
        --------
        >>> cache.crop(-3)  # doctest: +SKIP
        """
        tokens_to_remove = int(tokens_to_remove)  # some versions of transformers pass a tensor
        if tokens_to_remove > 0 and crops_to_length():
            self.truncate(min(tokens_to_remove, len(self.kv)))
        elif tokens_to_remove > 0:
            raise OptionError(
                "tokens_to_remove",
                "must be 0 or negative",
                got=tokens_to_remove,
                remedy=f"use -{tokens_to_remove} to remove that many, or truncate() to set the number that remain",
            )
        elif tokens_to_remove:
            self.truncate(len(self.kv) + tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Make sliding layers store the tokens that their windows have passed.

        Then any number of tokens can be removed again.
        """
        for layer in self._list_own_layers():
            layer.record_past = True

    def reset(self) -> None:
        """Remove all tokens."""
        self._set_kv(KVCache(self.kv.layers, windows=self.kv.windows, dtype=self.kv.dtype))
        self.reused_tokens = 0

    def reorder_cache(self, beam_idx: Any) -> None:
        """Replace the batch by the selected beams.

        Parameters
        ----------
        beam_idx : int tensor
            The beam that each item continues.
        """
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every item of the batch; a batch of one is not copied.

        Parameters
        ----------
        repeats : int
            Number of repetitions.
        """
        self.batch_select_indices(torch.arange(self._count_items()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Any) -> None:
        """Replace the batch by some of its items, in the order of `indices`.

        Parameters
        ----------
        indices : int or bool tensor
            Numbers of the items, or True for every item that remains.
        """
        items = self._count_items()
        if items:
            self.kv.select(torch.arange(items)[indices].numpy())

    def _count_items(self) -> int:
        return next((layer.keys.shape[0] for layer in self._list_own_layers() if layer.is_initialized), 0)

    def _list_own_layers(self) -> list[CacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, CacheLayer)]

    def _set_kv(self, kv: KVCache) -> None:
        self.kv = kv
        for layer in self._list_own_layers():
            layer.kv = kv


def _make_layer(number: int, layer: Any) -> Any:
    """Return the `CacheLayer` for a layer of transformers'; a layer that stores nothing stays."""
    if stores_nothing(layer):
        return layer
    layer_type = type(layer)
    if layer_type not in (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer):
        raise ModelError(
            "config",
            f"must describe layers that store keys and values only; layer {number} needs a {layer_type.__name__}",
            remedy="use transformers' DynamicCache for this model",
        )
    return CacheLayer(number, getattr(layer, "sliding_window", None))
