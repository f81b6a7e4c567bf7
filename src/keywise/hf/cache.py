"""The cache that transformers' models append to, kept in a `keywise.KVCache`."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

from keywise.attention.problem import Chunk
from keywise.cache import file
from keywise.cache.kvcache import KVCache
from keywise.cache.layer import cut
from keywise.errors import FormatError, ModelError, OptionError
from keywise.hf.joined import join


class CacheLayer:
    """One layer of a `Cache`: what transformers asks of a layer, answered from the `KVCache`."""

    is_compileable = False
    is_croppable = True
    supports_early_init = False

    kv: KVCache
    """The cache that holds this layer's keys and values, and those of all others."""

    def __init__(self, number: int, sliding_window: int | None) -> None:
        self._number, self.sliding_window = number, sliding_window
        self.is_sliding = sliding_window is not None
        self._dtype: Any = None

    @property
    def is_initialized(self) -> bool:
        """Whether anything was appended."""
        return self.kv.tokens(self._number) > 0

    @property
    def keys(self) -> Any:
        """The keys held, [B, H, tokens, D]; None before the first ones."""
        return self._tensors(None)[0] if self.is_initialized else None

    @property
    def values(self) -> Any:
        """The values held, [B, H, tokens, Dv]; None before the first ones."""
        return self._tensors(None)[1] if self.is_initialized else None

    @property
    def record_past(self) -> bool:
        """Whether a sliding layer keeps what its window has passed, so that it can be cropped."""
        return self.kv.windows[self._number] is None

    @record_past.setter
    def record_past(self, wanted: bool) -> None:
        windows = list(self.kv.windows)
        windows[self._number] = None if wanted or self.sliding_window is None else self.sliding_window - 1
        self.kv.windows = tuple(windows)

    def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
        """Do nothing: the first append makes the room."""

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Append the keys and values of new tokens; give all that these tokens may see."""
        self._dtype = key_states.dtype
        self.kv.append(self._number, key_states, value_states)
        seen = None if self.sliding_window is None else self.sliding_window - 1 + key_states.shape[2]
        return self._tensors(seen)

    def get_seq_length(self) -> int:
        """Give the number of tokens so far, those that a window has passed included."""
        return self.kv.tokens(self._number)

    def get_max_length(self) -> int:
        """Give the window of a sliding layer, -1 for no limit."""
        return -1 if self.sliding_window is None else self.sliding_window

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Give how many keys `update` will return for so many queries, and the position of the first."""
        tokens = self.get_seq_length()
        first = 0 if self.sliding_window is None else max(tokens - self.sliding_window + 1, 0)
        return tokens - first + query_length, first

    def _tensors(self, last: int | None) -> tuple[Any, Any]:
        """Give keys and values, of all tokens held or the last so many, as tensors over the cache's own memory."""
        import torch

        chunks = self.kv.chunks(self._number)
        held = chunks[0].key
        dtype = self._dtype or getattr(torch, held.dtype if held.scale is None else "float32")
        keys, values = zip(*(chunks if last is None else _last(chunks, last)), strict=True)
        return join(keys, dtype), join(values, dtype)


def _last(chunks: tuple[Chunk, ...], tokens: int) -> Iterator[Chunk]:
    """Give the last so many tokens of all."""
    surplus = sum(chunk.tokens for chunk in chunks) - tokens
    for chunk in chunks:
        if surplus < chunk.tokens:
            yield chunk if surplus <= 0 else cut(chunk, surplus, chunk.tokens)
        surplus = max(surplus - chunk.tokens, 0)


class CacheMethods:
    """Keys and values of a transformers model in a `keywise.KVCache`: no step copies the past, forks share it.

    Give it to a model or to ``generate`` as ``past_key_values``. With keywise's attention a past in several pieces (a
    shared document, the own tail) is read where it lies; with any other attention it works too, by a copy per step.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        The model's config: its number of layers, and which of them slide a window.
    kv : keywise.KVCache, optional
        Keys and values taken from disk; default none yet.
    dtype : str, optional
        ``"int8"`` keeps half the bytes of bfloat16, rounded; see `keywise.KVCache`. Default: exactly what comes.

    Attributes
    ----------
    kv : keywise.KVCache
        What holds the keys and values.
    reused_tokens : int
        Number of tokens in it that were taken from disk instead of being read by the model.

    Raises
    ------
    ModelError
        When the model has layers that keep something else than keys and values.

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

    layers: list[Any]

    def __init__(self, config: Any, kv: KVCache | None = None, *, dtype: str | None = None) -> None:
        super().__init__(config=config)  # type: ignore[call-arg]  # transformers' DynamicCache comes behind this class
        self.layers = [_taken_over(number, layer) for number, layer in enumerate(self.layers)]
        if kv is None:
            sliding = [getattr(layer, "sliding_window", None) for layer in self.layers]
            windows = [None if window is None else window - 1 for window in sliding]
            kv = KVCache(len(sliding), windows=windows, dtype=dtype)
        elif dtype not in (None, kv.dtype):
            raise OptionError(f"dtype={dtype!r}: kv holds {kv.dtype or 'what came'}; leave dtype out")
        elif kv.layers != len(self.layers):
            raise FormatError(f"kv has {kv.layers} layers and the model {len(self.layers)}; it is another one's")
        self.reused_tokens = len(kv)
        self._set(kv)

    def save(self, path: str | os.PathLike[str], token_ids: Any, fingerprint: Mapping[str, str], **others: Any) -> None:
        """Write the cache to a file, whole or not at all; see `keywise.cache.file.save`.

        Parameters
        ----------
        path : path
        token_ids : whole numbers [N] or [B, N]
            The tokens that the model has read, padding included; those behind the last one cached are left out.
        fingerprint : mapping
            What `keywise.models.fingerprint` says of the model. With an encoder the decoder's keys depend on all of the
            source too: add a field of your own for it.
        others
            `positions` and `extra`, as in `keywise.cache.file.save`.

        Raises
        ------
        FormatError, ShapeError, DtypeError, OptionError
            As `keywise.cache.file.save` does.

        Examples
        --------
        >>> cache.save("chat.keywise", ids, keywise.models.fingerprint(model, tokenizer))  # doctest: +SKIP
        """
        file.save(path, self.kv, fingerprint=fingerprint, token_ids=token_ids[..., : len(self.kv)], **others)

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
        """Open a file that `save` wrote: mapped, not read; `reused_tokens` tells how much of it serves.

        Parameters
        ----------
        path : path
        config : transformers.PreTrainedConfig
            The model's config.
        fingerprint : mapping
            What `keywise.models.fingerprint` says of the model; every field must be that of the file.
        token_ids : whole numbers [N] or [B, N], optional
            The tokens to go on with: what they share with the file from the first token on is kept, but for the last
            one, which the model needs to go on from. None keeps the whole file.
        positions : whole numbers of that shape, optional
            As given to `save`, if they were.

        Returns
        -------
        Cache

        Raises
        ------
        FormatError
            When the file is damaged, or made by another model, tokenizer, dtype or rotary positions, with the reason.
        OptionError
            When a sliding layer has dropped what the shared tokens need.

        Examples
        --------
        >>> cache = keywise.hf.Cache.open("chat.keywise", model.config, fingerprint, ids)  # doctest: +SKIP
        >>> model.generate(ids, past_key_values=cache)  # doctest: +SKIP
        """
        opened = file.open(path, fingerprint)
        cache = cls(config, opened.cache)
        if token_ids is not None:
            common = opened.head.common_tokens(token_ids, positions)
            cache.truncate(max(min(common, token_ids.shape[-1] - 1), 0))
        return cache

    def fork(self) -> Any:
        """Give a cache that goes on from the same tokens; what is there is shared."""
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        other._set(self.kv.fork())
        return other

    def __deepcopy__(self, _memo: dict[int, Any]) -> Any:
        return self.fork()

    def truncate(self, tokens: int) -> None:
        """Keep the first so many tokens.

        Raises
        ------
        OptionError
            When there are fewer, or a sliding layer has dropped what the next token would see; it keeps everything
            after `activate_past_recording`.
        """
        self.kv.truncate(tokens)
        self.reused_tokens = min(self.reused_tokens, tokens)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove so many of the last tokens; transformers counts them below zero."""
        if tokens_to_remove > 0:
            raise OptionError(
                f"tokens_to_remove={tokens_to_remove} is above 0; give -{tokens_to_remove} to remove that many, or "
                "truncate() to the number that stay"
            )
        if tokens_to_remove:
            self.truncate(len(self.kv) + tokens_to_remove)

    def activate_past_recording(self) -> None:
        """Let sliding layers keep what their windows pass, so that any number of tokens can be removed again."""
        for layer in self._own():
            layer.record_past = True

    def reset(self) -> None:
        """Forget all tokens."""
        self._set(KVCache(self.kv.layers, windows=self.kv.windows, dtype=self.kv.dtype))
        self.reused_tokens = 0

    def reorder_cache(self, beam_idx: Any) -> None:
        """Continue the beams that these items name."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every item so many times; a batch of one stays one in memory."""
        import torch

        self.batch_select_indices(torch.arange(self._batch()).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Any) -> None:
        """Make the batch of these of its items, in this order, or of those where a boolean tensor is true."""
        import torch

        if self._batch():
            self.kv.select(torch.arange(self._batch())[indices].numpy())

    def _batch(self) -> int:
        return next((layer.keys.shape[0] for layer in self._own() if layer.is_initialized), 0)

    def _own(self) -> list[Any]:
        return [layer for layer in self.layers if isinstance(layer, CacheLayer)]

    def _set(self, kv: KVCache) -> None:
        self.kv = kv
        for layer in self._own():
            layer.kv = kv


@functools.cache
def layer_class() -> Any:
    """Give `CacheLayer` as a transformers layer."""
    from transformers.cache_utils import CacheLayerMixin

    return type("CacheLayer", (CacheLayer, CacheLayerMixin), {"__doc__": CacheLayer.__doc__})


@functools.cache
def cache_class() -> Any:
    """Give `keywise.hf.Cache`: a transformers `DynamicCache` with the methods above."""
    from transformers import DynamicCache

    return type("Cache", (CacheMethods, DynamicCache), {"__doc__": CacheMethods.__doc__, "__module__": "keywise.hf"})


def _taken_over(number: int, layer: Any) -> Any:
    """Give our own layer for one of transformers' that keeps keys and values, and one that keeps nothing as it is."""
    from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

    kind = type(layer)
    if kind is DummyLayer:
        return layer
    if kind not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise ModelError(
            f"config: layer {number} needs a {kind.__name__}, which keeps something else than keys and values; "
            "use transformers' DynamicCache for this model"
        )
    return layer_class()(number, getattr(layer, "sliding_window", None))
