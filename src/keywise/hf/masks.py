"""What a transformers mask says, kept as a `keywise.Mask` so that nothing n x n is made.

transformers describes a mask by closures over token positions. The closures that its own helpers make are recognised by
their code objects, which no other function shares; any other closure is evaluated to the boolean tensor it stands for.
"""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from keywise.attention.mask import Mask

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, eq=False)
class Pattern:
    """What the closures say about two positions, whatever the offsets and the padding."""

    causal: bool = False
    left: int | None = None
    right: int | None = None
    documents: Any = None

    def narrowed(self, other: Pattern) -> Pattern | None:
        """Give the pattern in which both hold, or None when two sets of documents meet."""
        if self.documents is not None and other.documents is not None:
            return None
        return Pattern(
            causal=self.causal or other.causal,
            left=_narrower(self.left, other.left),
            right=_narrower(self.right, other.right),
            documents=other.documents if self.documents is None else self.documents,
        )

    @property
    def positional(self) -> bool:
        """Whether a query's own position matters."""
        return self.causal or self.left is not None or self.right is not None or self.documents is not None


@dataclass(frozen=True, eq=False)
class Layout:
    """One call of the mask function: the sizes, where they start, what is visible."""

    batch: int
    queries: int
    keys: int
    first_query: int
    first_key: int
    function: Callable[..., Any]
    padding: Any
    """[B, tokens seen] bool, True for a real token, or None."""
    use_vmap: bool
    device: Any

    def dense(self) -> Any:
        """Build the boolean tensor [B, 1, queries, keys] that transformers would build."""
        from transformers.masking_utils import sdpa_mask

        return sdpa_mask(
            batch_size=self.batch,
            q_length=self.queries,
            kv_length=self.keys,
            q_offset=self.first_query,
            kv_offset=self.first_key,
            mask_function=self.function,
            attention_mask=self.padding,
            allow_is_causal_skip=False,
            use_vmap=self.use_vmap,
            device=self.device,
        )

    def mask(self) -> Mask | None:
        """Say the same as a `keywise.Mask` of linear size, or None when it cannot be said."""
        pattern = read_pattern(self.function)
        if pattern is None:
            return None
        # Keys up to and including the last query's own position.
        seen = self.first_query - self.first_key + self.queries
        if not self.queries <= seen <= self.keys:
            return None if pattern.positional else self._with_padding(Mask(), self.keys, positional=False)
        if pattern.documents is not None and tuple(pattern.documents.shape) != (self.batch, self.keys):
            return None
        if pattern.positional and not pattern.causal and seen != self.keys:
            return None
        windowed = pattern.left is not None or pattern.right is not None
        mask = Mask(
            causal=pattern.causal,
            window=(pattern.left, pattern.right) if windowed else None,
            lengths=[seen] * self.batch if pattern.causal and seen < self.keys else None,
            documents=pattern.documents,
        )
        return self._with_padding(mask, seen if pattern.causal else self.keys, positional=pattern.positional)

    def _with_padding(self, mask: Mask, seen: int, *, positional: bool) -> Mask | None:
        if self.padding is None:
            return mask
        if self.padding.shape[0] != self.batch:
            return None
        visible = np.zeros((self.batch, self.keys), bool)
        known = self.padding[:, self.first_key : self.first_key + self.keys].cpu().numpy()
        visible[:, : known.shape[1]] = known
        reachable = visible[:, :seen]
        if reachable.all():
            return mask
        if (reachable[:, 1:] >= reachable[:, :-1]).all():
            return replace(mask, starts=seen - reachable.sum(axis=1))
        # `lengths` also moves the queries, so it serves right padding only where positions do not matter.
        if not positional and (reachable[:, 1:] <= reachable[:, :-1]).all():
            return replace(mask, lengths=reachable.sum(axis=1))
        return replace(mask, allowed=visible[:, None, None, :])


def read_pattern(function: Callable[..., Any]) -> Pattern | None:
    """Give the pattern of a closure made by transformers' own helpers, None for any other function."""
    from transformers import masking_utils as theirs

    if function is theirs.causal_mask_function:
        return Pattern(causal=True)
    if function is theirs.bidirectional_mask_function:
        return Pattern()
    code = getattr(function, "__code__", None)
    if code is theirs.sliding_window_overlay(1).__code__:
        return Pattern(left=_closed(function, "sliding_window") - 1)
    if code is theirs.sliding_window_bidirectional_overlay(1).__code__:
        distance = _closed(function, "sliding_window")
        return Pattern(left=distance, right=distance)
    if code is not theirs.and_masks().__code__:
        return None
    parts = _closed(function, "mask_functions")
    return _packed(parts) or _all_of(parts)


def _all_of(parts: tuple[Callable[..., Any], ...]) -> Pattern | None:
    whole: Pattern | None = Pattern()
    for part in parts:
        pattern = read_pattern(part)
        whole = whole.narrowed(pattern) if whole is not None and pattern is not None else None
    return whole


def _packed(parts: tuple[Callable[..., Any], ...]) -> Pattern | None:
    """Read packed documents: own positions rise by one inside a document, so causal and windows mean the same there."""
    from transformers import masking_utils as theirs

    codes = [getattr(part, "__code__", None) for part in parts]
    packed, remapped = (
        theirs.packed_sequence_mask_function(None),
        theirs.remap_positions_for_packed_sequence(None, None),
    )
    if codes != [packed.__code__, remapped.__code__]:
        return None
    documents = _closed(parts[0], "packed_sequence_mask")
    positions = _closed(parts[1], "position_ids")
    together = documents[:, 1:] == documents[:, :-1]
    inner = read_pattern(_closed(parts[1], "mask_function"))
    if inner is None or not bool((positions.diff(dim=-1)[together] == 1).all()):
        return None
    return inner.narrowed(Pattern(documents=documents))


def _closed(function: Any, name: str) -> Any:
    """Give a variable that a closure holds."""
    return function.__closure__[function.__code__.co_freevars.index(name)].cell_contents


def _narrower(one: int | None, other: int | None) -> int | None:
    sides = [side for side in (one, other) if side is not None]
    return min(sides, default=None)


def make_mask(  # noqa: PLR0917  (transformers names and orders the arguments)
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Any = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    device: Any = "cpu",
    **_: Any,
) -> Any:
    """Make the mask that transformers asks for: None for plain causal attention, otherwise a lazy tensor.

    None means one thing only: bottom-right causal. A mask under which every query sees every key is a lazy tensor too,
    because the attention function could not tell its None from the causal one. The other keywords that transformers
    hands over (dtype, config, allow_is_bidirectional_skip) choose between forms that are all one here.
    """
    from transformers.masking_utils import causal_mask_function

    layout = Layout(
        batch=batch_size,
        queries=q_length,
        keys=kv_length,
        first_query=int(q_offset),
        first_key=kv_offset,
        function=causal_mask_function if mask_function is None else mask_function,
        padding=attention_mask,
        use_vmap=use_vmap,
        device=device,
    )
    if allow_is_causal_skip and _plain_causal(layout, local_size):
        return None
    return lazy_mask_class()(layout)


def _plain_causal(layout: Layout, local_size: int | None) -> bool:
    end = layout.first_key + layout.keys
    unpadded = layout.padding is None or (
        layout.padding.shape[-1] >= end and bool(layout.padding[:, layout.first_key : end].all())
    )
    return (
        unpadded
        and layout.first_key == 0
        and layout.first_query + layout.queries == layout.keys
        and (local_size is None or layout.keys <= local_size)
    )


@functools.cache
def lazy_mask_class() -> Any:
    """Give the tensor class whose elements are computed only if some operation asks for them.

    Models slice, copy and combine masks; whatever they do works on the real elements, while the attention function
    reads the layout alone.
    """
    import torch
    from torch.utils import _pytree

    class LazyMask(torch.Tensor):  # type: ignore[misc]  # torch has no types here
        """A boolean mask [B, 1, queries, keys] without storage."""

        mask_layout: Layout

        @staticmethod
        def __new__(cls, layout: Layout) -> Any:
            shape = (layout.batch, 1, layout.queries, layout.keys)
            self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.bool, device=layout.device)
            self.mask_layout = layout
            return self

        @functools.cached_property
        def dense(self) -> Any:
            return self.mask_layout.dense()

        @functools.cached_property
        def mask(self) -> Mask:
            mask = self.mask_layout.mask()
            return Mask(allowed=self.dense) if mask is None else mask

        def __repr__(self, **_: Any) -> str:
            return f"LazyMask({list(self.shape)})"

        @classmethod
        def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            def filled(value: Any) -> Any:
                if not isinstance(value, LazyMask):
                    return value
                # Whoever holds the elements may write to them, so from here on they are the mask.
                value.mask = Mask(allowed=value.dense)
                return value.dense

            return function(*_pytree.tree_map(filled, args), **_pytree.tree_map(filled, kwargs or {}))

    return LazyMask
