"""Keys and values of one layer: read-only chunks, then one private chunk that grows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keywise.attention.arrays import Array, HostArray
from keywise.attention.problem import Chunk

MIN_CAPACITY_TOKENS = 64
"""Capacity of the smallest private chunk, beyond the tokens that it needs."""


class Layer:
    """Keys and values of consecutive tokens.

    The tokens of a head lie together in memory, as the kernels read them.

    Parameters
    ----------
    window : int, optional
        Number of keys before the next query's own position that are visible to it; older ones are dropped when
        tokens are appended. None drops none.
    first_key : int
        Position of the first key.
    chunk : Chunk, optional
        Tokens to begin with; they are never written to.
    verify : callable, optional
        Called with what remains of `chunk` before it is first used; raises where it is damaged.

    Attributes
    ----------
    window, first_key
        As passed; `first_key` grows when tokens are dropped.
    """

    def __init__(
        self,
        window: int | None = None,
        *,
        first_key: int = 0,
        chunk: Chunk | None = None,
        verify: Callable[[Chunk], None] | None = None,
    ) -> None:
        self.window = window
        self.first_key = first_key
        self._shared: tuple[Chunk, ...] = () if chunk is None else (chunk,)
        self._verify_chunk = verify
        self._private: Chunk | None = None
        # The tokens of the private chunk that are in use: `_begin` to `_end - 1`.
        self._begin = 0
        self._end = 0
        # Tokens of the private chunk before this one may be seen by forks: they are never overwritten.
        self._forked_end = 0

    @property
    def tokens(self) -> int:
        """Number of tokens so far, dropped ones included: the position of the next token."""
        return self.first_key + sum(chunk.tokens for chunk in self._shared) + self._end - self._begin

    def chunks(self) -> tuple[Chunk, ...]:
        """Return verified views of the tokens in order; they are valid until the next change."""
        self._verify()
        return self._list_views()

    def find_example_chunk(self) -> Chunk | None:
        """Return a verified chunk that new tokens must agree with in dtype and shape.

        None if the layer has no tokens.
        """
        self._verify()
        if self._shared:
            return self._shared[0]
        return None if self._begin == self._end else self._private

    def _verify(self) -> None:
        if self._verify_chunk is not None and self._shared:
            # `append` verifies before it adds a chunk, so this is still the chunk that the layer began with.
            self._verify_chunk(self._shared[0])
        self._verify_chunk = None

    def _list_views(self) -> tuple[Chunk, ...]:
        if self._private is None or self._begin == self._end:
            return self._shared
        return (*self._shared, slice_chunk(self._private, self._begin, self._end))

    def append(self, chunk: Chunk) -> None:
        """Write new tokens behind the last ones.

        Parameters
        ----------
        chunk : Chunk
            Agrees with `find_example_chunk()`; the caller has checked that.
        """
        if self.window is not None:
            self._drop(self.tokens - self.window - self.first_key)
        private = self._reserve(chunk)  # may move the tokens and change `_end`
        _write(private, self._end, chunk)
        self._end += chunk.tokens

    def can_truncate(self, tokens: int) -> bool:
        """Return whether the next query after a truncation sees only keys that were not dropped.

        Parameters
        ----------
        tokens : int
            Number of tokens that would remain.
        """
        if tokens == 0 or self.first_key == 0:
            return True
        return self.window is not None and tokens - self.window >= self.first_key

    def truncate(self, tokens: int) -> None:
        """Remove the tokens from a position on.

        Parameters
        ----------
        tokens : int
            Number of tokens that remain, dropped ones included.
        """
        if tokens == 0:
            self._drop(self.tokens - self.first_key)
            self.first_key = 0
            return
        remaining = tokens - self.first_key
        shared: list[Chunk] = []
        for chunk in self._shared:
            shared.append(chunk if chunk.tokens <= remaining else slice_chunk(chunk, 0, remaining))
            remaining -= shared[-1].tokens
        self._shared = tuple(chunk for chunk in shared if chunk.tokens)
        self._end = self._begin + remaining
        if self._end < self._forked_end:
            self._shared = self._list_views()
            self._release_private()

    def fork(self) -> Layer:
        """Return an independent layer with the same tokens; nothing is copied."""
        other = Layer(self.window, first_key=self.first_key, verify=self._verify_chunk)
        other._shared = self._list_views()
        self._forked_end = self._end
        return other

    def select(self, items: Array) -> None:
        """Replace the batch by some of its items.

        Parameters
        ----------
        items : integers [B]
            Numbers of items, in any order; they may repeat.
        """
        chunks = self.chunks()
        private = self._private
        if private is None or items.size != private.key.data.shape[0] or self._forked_end > self._begin:
            self._shared = tuple(_select_items(chunk, items) for chunk in chunks)
            self._release_private()
            return
        self._shared = tuple(_select_items(chunk, items) for chunk in self._shared)
        changed = np.flatnonzero(items != np.arange(items.size))
        for array in _list_arrays(slice_chunk(private, self._begin, self._end)):
            array[changed] = array[items[changed]]

    def _release_private(self) -> None:
        self._private = None
        self._begin = 0
        self._end = 0
        self._forked_end = 0

    def _drop(self, tokens: int) -> None:
        """Drop tokens at the front."""
        if tokens <= 0:
            return
        self.first_key += tokens
        while tokens and self._shared:
            first = self._shared[0]
            dropped = min(tokens, first.tokens)
            rest = self._shared[1:]
            if dropped < first.tokens:
                rest = (slice_chunk(first, dropped, first.tokens), *rest)
            self._shared = rest
            tokens -= dropped
        self._begin += tokens

    def _reserve(self, new: Chunk) -> Chunk:
        """Return the private chunk with capacity for new tokens behind the last one."""
        private = self._private
        if private is None:
            return self._grow(slice_chunk(new, 0, 0), new)
        tokens = self._end - self._begin
        if not tokens and not _have_same_layout(private, new):
            return self._grow(slice_chunk(new, 0, 0), new)
        needed = tokens + new.tokens
        capacity = private.tokens
        too_large = capacity > 4 * max(needed, MIN_CAPACITY_TOKENS)
        if self._end + new.tokens <= capacity and not too_large:
            return private
        live = slice_chunk(private, self._begin, self._end)
        if 2 * needed <= capacity and not too_large and not self._forked_end:
            # The window has moved through the chunk, so its tokens fit into the free space at the start.
            _write(private, 0, live)
            self._begin = 0
            self._end = tokens
            return private
        return self._grow(live, new)

    def _grow(self, live: Chunk, new: Chunk) -> Chunk:
        """Replace the private chunk by a larger one that begins with the tokens of `live`."""
        needed = live.tokens + new.tokens
        capacity = needed + max(needed // 2, MIN_CAPACITY_TOKENS)
        self._private = Chunk(_allocate(new.key, capacity), _allocate(new.value, capacity))
        if live.tokens:
            _write(self._private, 0, live)
        self._begin = 0
        self._end = live.tokens
        self._forked_end = 0
        return self._private


def slice_chunk(chunk: Chunk, begin: int, end: int) -> Chunk:
    """Return a view of a range of tokens.

    Parameters
    ----------
    chunk : Chunk
        Keys and values.
    begin, end : int
        Number of the first token, and of the token behind the last one.
    """
    return _map_arrays(chunk, lambda array: array[:, :, begin:end])


def _map_arrays(chunk: Chunk, change: Callable[[Array], Array]) -> Chunk:
    """Apply a function to elements [batch, heads, tokens, head_dim] and scales [batch, heads, tokens]."""
    sides = [
        HostArray(change(data), dtype, None, None if scale is None else change(scale))
        for data, dtype, _, scale in chunk
    ]
    return Chunk(*sides)


def _list_arrays(chunk: Chunk) -> list[Array]:
    return [array for side in chunk for array in (side.data, side.scale) if array is not None]


def _write(target: Chunk, begin: int, chunk: Chunk) -> None:
    """Write tokens into another chunk from its token `begin` on."""
    end = begin + chunk.tokens
    for destination, source in zip(_list_arrays(target), _list_arrays(chunk), strict=True):
        destination[:, :, begin:end] = source


def _allocate(like: HostArray, capacity: int) -> HostArray:
    """Return uninitialised memory for `capacity` tokens.

    NumPy allocates huge pages, which are read much faster.
    """
    batch, heads, _, width = like.data.shape
    scale = None if like.scale is None else np.empty((batch, heads, capacity), np.float32)
    return HostArray(np.empty((batch, heads, capacity, width), like.data.dtype), like.dtype, None, scale)


def _have_same_layout(left: Chunk, right: Chunk) -> bool:
    """Return whether chunks agree in everything but the number of tokens."""
    return all(
        a.dtype == b.dtype and a.data.shape[:2] == b.data.shape[:2] and a.data.shape[3] == b.data.shape[3]
        for a, b in zip(left, right, strict=True)
    )


def _select_items(chunk: Chunk, items: Array) -> Chunk:
    if np.array_equal(items, np.arange(chunk.key.data.shape[0])):
        return chunk
    return _map_arrays(chunk, lambda array: _select_array_items(array, items))


def _select_array_items(array: Array, items: Array) -> Array:
    if array.shape[0] == 1 or array.strides[0] == 0:
        # All items share the same memory, before and after.
        return np.lib.stride_tricks.as_strided(array, (items.size, *array.shape[1:]), (0, *array.strides[1:]))
    return np.ascontiguousarray(array[items])
