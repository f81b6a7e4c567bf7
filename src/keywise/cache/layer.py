"""One layer's keys and values: pieces that nobody writes to any more, then one private piece that grows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from keywise.attention.arrays import Array, HostArray
from keywise.attention.problem import Chunk

FEWEST_TOKENS = 64
"""Room of the smallest private piece."""


class Layer:
    """Keys and values of consecutive tokens; in memory each head's tokens lie together, as the kernels read them.

    Parameters
    ----------
    window : int, optional
        Keys before the next query's own position that it may still need; older ones are dropped when tokens are
        appended. None keeps all.
    first : int
        Position of the first token kept.
    shared : Piece, optional
        Tokens that are there already.
    check : callable, optional
        Called with what is left of them before they are first looked at; raises when it is not what it should be.
    """

    def __init__(
        self,
        window: int | None = None,
        *,
        first: int = 0,
        shared: Chunk | None = None,
        check: Callable[[Chunk], None] | None = None,
    ) -> None:
        self.window = window
        self.first = first
        self._shared: tuple[Chunk, ...] = () if shared is None else (shared,)
        self._check = check
        self._private: Chunk | None = None
        self._begin = self._end = 0
        self._lent = 0
        """Tokens of the private piece before this one may be seen by forks: they are never overwritten."""

    @property
    def tokens(self) -> int:
        """Number of tokens so far, dropped ones included: the position of the next one."""
        return self.first + sum(chunk.tokens for chunk in self._shared) + self._end - self._begin

    def chunks(self) -> tuple[Chunk, ...]:
        """Give the tokens kept as views in order; they hold until the next change."""
        self._verify()
        return self._views()

    @property
    def held(self) -> Chunk | None:
        """A piece that new tokens must be like, its room included; None where nothing is kept."""
        self._verify()
        return self._shared[0] if self._shared else None if self._begin == self._end else self._private

    def _verify(self) -> None:
        if self._check is not None and self._shared:
            # Nothing is appended without a look at what is held, so these are still the first and only ones.
            self._check(self._shared[0])
        self._check = None

    def _views(self) -> tuple[Chunk, ...]:
        if self._private is None or self._begin == self._end:
            return self._shared
        return (*self._shared, cut(self._private, self._begin, self._end))

    def append(self, chunk: Chunk) -> None:
        """Write new tokens behind the last; the caller has seen to it that they fit."""
        if self.window is not None:
            self._drop(self.tokens - self.window - self.first)
        room = self._room_for(chunk)  # which may move the tokens
        _write(room, self._end, chunk)
        self._end += chunk.tokens

    def misses(self, tokens: int) -> bool:
        """Tell whether going back to this many tokens would need tokens that the window has dropped."""
        return tokens > 0 and self.first > 0 and (self.window is None or tokens - self.window < self.first)

    def truncate(self, tokens: int) -> None:
        """Forget the tokens from this position on."""
        if tokens == 0:
            self._drop(self.tokens - self.first)
            self.first = 0
            return
        kept = tokens - self.first
        shared: list[Chunk] = []
        for chunk in self._shared:
            shared.append(chunk if chunk.tokens <= kept else cut(chunk, 0, kept))
            kept -= shared[-1].tokens
        self._shared = tuple(chunk for chunk in shared if chunk.tokens)
        self._end = self._begin + kept
        if self._end < self._lent:
            self._shared = self._views()
            self._let_go()

    def fork(self) -> Layer:
        """Give a layer with the same tokens; nothing is copied, and neither writes over what the other sees."""
        other = Layer(self.window, first=self.first, check=self._check)
        other._shared = self._views()
        self._lent = self._end
        return other

    def select(self, items: Array) -> None:
        """Make the batch of some of its items, in any order and as often as wanted."""
        chunks, private = self.chunks(), self._private
        if private is None or items.size != private.key.data.shape[0] or self._lent > self._begin:
            self._shared = tuple(_selected(chunk, items) for chunk in chunks)
            self._let_go()
            return
        self._shared = tuple(_selected(chunk, items) for chunk in self._shared)
        changed = np.flatnonzero(items != np.arange(items.size))
        for live in _arrays(cut(private, self._begin, self._end)):
            live[changed] = live[items[changed]]

    def _let_go(self) -> None:
        self._private = None
        self._begin = self._end = self._lent = 0

    def _drop(self, tokens: int) -> None:
        if tokens <= 0:
            return
        self.first += tokens
        while tokens and self._shared:
            whole = self._shared[0].tokens
            here = min(tokens, whole)
            rest = self._shared[1:]
            self._shared = rest if here == whole else (cut(self._shared[0], here, whole), *rest)
            tokens -= here
        self._begin += tokens

    def _room_for(self, chunk: Chunk) -> Chunk:
        """Give the private piece with room for `piece` behind its last token."""
        private = self._private
        if private is None:
            return self._fill(cut(chunk, 0, 0), chunk)
        count = self._end - self._begin
        if not count and not _alike(private, chunk):
            return self._fill(cut(chunk, 0, 0), chunk)
        needed, capacity = count + chunk.tokens, private.tokens
        roomy = capacity > 4 * max(needed, FEWEST_TOKENS)
        if self._end + chunk.tokens <= capacity and not roomy:
            return private
        live = cut(private, self._begin, self._end)
        if 2 * needed <= capacity and not roomy and not self._lent:
            # A window moves through its piece: what is left of it goes back to the start.
            _write(private, 0, live)
            self._begin, self._end = 0, count
            return private
        return self._fill(live, chunk)

    def _fill(self, live: Chunk, new: Chunk) -> Chunk:
        """Start a private piece with `live`, room for `new` and a share more."""
        needed = live.tokens + new.tokens
        capacity = needed + max(needed // 2, FEWEST_TOKENS)
        self._private = Chunk(_room(new.key, capacity), _room(new.value, capacity))
        if live.tokens:
            _write(self._private, 0, live)
        self._begin, self._end, self._lent = 0, live.tokens, 0
        return self._private


def cut(chunk: Chunk, begin: int, end: int) -> Chunk:
    """Give a view of tokens `begin` to `end - 1`."""
    return _each(chunk, lambda array: array[:, :, begin:end])


def _each(chunk: Chunk, change: Callable[[Array], Array]) -> Chunk:
    """Change numbers [batch, heads, tokens, head_dim] and scales [batch, heads, tokens] alike."""
    return Chunk(
        *[
            HostArray(change(data), dtype, None, None if scale is None else change(scale))
            for data, dtype, _, scale in chunk
        ]
    )


def _arrays(chunk: Chunk) -> list[Array]:
    return [array for held in chunk for array in (held.data, held.scale) if array is not None]


def _write(into: Chunk, first: int, chunk: Chunk) -> None:
    """Write tokens over those of another piece from its token `first` on."""
    last = first + chunk.tokens
    for place, array in zip(_arrays(into), _arrays(chunk), strict=True):
        place[:, :, first:last] = array


def _room(new: HostArray, capacity: int) -> HostArray:
    """Give memory for more tokens like `new`: NumPy's, which asks for huge pages, and these are read much faster."""
    batch, heads, _, width = new.data.shape
    scale = None if new.scale is None else np.empty((batch, heads, capacity), np.float32)
    return HostArray(np.empty((batch, heads, capacity, width), new.data.dtype), new.dtype, None, scale)


def _alike(one: Chunk, other: Chunk) -> bool:
    return all(
        a.dtype == b.dtype and a.data.shape[:2] == b.data.shape[:2] and a.data.shape[3] == b.data.shape[3]
        for a, b in zip(one, other, strict=True)
    )


def _selected(chunk: Chunk, items: Array) -> Chunk:
    if np.array_equal(items, np.arange(chunk.key.data.shape[0])):
        return chunk
    return _each(chunk, lambda array: _items_of(array, items))


def _items_of(array: Array, items: Array) -> Array:
    if array.shape[0] == 1 or array.strides[0] == 0:
        # All items are one in memory, and stay one.
        return np.lib.stride_tricks.as_strided(array, (items.size, *array.shape[1:]), (0, *array.strides[1:]))
    return np.ascontiguousarray(array[items])
