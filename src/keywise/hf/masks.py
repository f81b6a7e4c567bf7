"""Masks that transformers describes, as `keywise.Mask` objects of linear size.

transformers describes a mask by closures over token positions. Those that its own helpers make are recognised by their
code objects, which no other function shares; any other closure is evaluated to a boolean tensor.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree

from keywise.attention.mask import Mask
from keywise.hf.compatibility import identify_mask_function, import_internals
from keywise.hf.support import is_eager_only

masking_utils = import_internals("masking_utils")

MaskFunction = Callable[..., Any]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch has no types here
def is_eager_only_constant(config_class: type) -> bool:
    """Return `is_eager_only`, as a constant of a compiled graph.

    Parameters
    ----------
    config_class : type
        The class of a model's configuration.
    """
    return is_eager_only(config_class)


@dataclass(frozen=True, eq=False)
class Pattern:
    """The keys that a query sees, as a rule about positions without offsets and padding.

    Attributes
    ----------
    causal : bool
        Whether a query sees no later key.
    left, right : int or None
        How many earlier and later keys a query sees; None for all.
    documents : int tensor [B, N] or None
        The document of every token, in packed sequences; tokens see their own document only.
    """

    causal: bool = False
    left: int | None = None
    right: int | None = None
    documents: Any = None

    def intersect(self, other: Pattern) -> Pattern | None:
        """Return the pattern of the keys that are visible in both.

        The result is None if both patterns have documents.

        Parameters
        ----------
        other : Pattern
            The other pattern.
        """
        if self.documents is not None and other.documents is not None:
            return None
        return Pattern(
            causal=self.causal or other.causal,
            left=_find_minimum(self.left, other.left),
            right=_find_minimum(self.right, other.right),
            documents=other.documents if self.documents is None else self.documents,
        )

    @property
    def positional(self) -> bool:
        """Whether a query's own position matters."""
        return self.causal or self.left is not None or self.right is not None or self.documents is not None


def _find_minimum(first: int | None, second: int | None) -> int | None:
    limits = [limit for limit in (first, second) if limit is not None]
    return min(limits, default=None)


@dataclass(frozen=True, eq=False)
class Layout:
    """Arguments of one call of the mask function.

    Attributes
    ----------
    batch, queries, keys : int
        Sizes of the mask.
    first_query, first_key : int
        Token positions of the first query and key.
    function : callable
        transformers' closure: whether a query sees a key.
    padding : bool tensor [B, tokens] or None
        True for a real token.
    use_vmap : bool
        Whether transformers evaluates the closure by vmap.
    device : torch.device or str
        Where the mask is made.
    """

    batch: int
    queries: int
    keys: int
    first_query: int
    first_key: int
    function: MaskFunction
    padding: Any
    use_vmap: bool
    device: Any

    def make_dense(self) -> Any:
        """Return the boolean tensor [B, 1, queries, keys] that transformers would make."""
        return masking_utils.sdpa_mask(
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

    def make_mask(self) -> Mask | None:
        """Return the mask as a `keywise.Mask` of linear size, or None."""
        pattern = read_pattern(self.function)
        if pattern is None:
            return None
        # Keys up to and including the last query's own position.
        visible_keys = self.first_query - self.first_key + self.queries
        if not self.queries <= visible_keys <= self.keys:
            return None if pattern.positional else self._add_padding(Mask(), self.keys, positional=False)
        if pattern.documents is not None and tuple(pattern.documents.shape) != (self.batch, self.keys):
            return None
        if pattern.positional and not pattern.causal and visible_keys != self.keys:
            return None
        has_window = pattern.left is not None or pattern.right is not None
        has_future_keys = pattern.causal and visible_keys < self.keys
        mask = Mask(
            causal=pattern.causal,
            window=(pattern.left, pattern.right) if has_window else None,
            lengths=[visible_keys] * self.batch if has_future_keys else None,
            documents=pattern.documents,
        )
        reachable_keys = visible_keys if pattern.causal else self.keys
        return self._add_padding(mask, reachable_keys, positional=pattern.positional)

    def _add_padding(self, mask: Mask, reachable_keys: int, *, positional: bool) -> Mask | None:
        if self.padding is None:
            return mask
        if self.padding.shape[0] != self.batch:
            return None
        visible = np.zeros((self.batch, self.keys), bool)
        real_tokens = self.padding[:, self.first_key : self.first_key + self.keys].cpu().numpy()
        visible[:, : real_tokens.shape[1]] = real_tokens
        reachable = visible[:, :reachable_keys]
        if reachable.all():
            return mask
        if (reachable[:, 1:] >= reachable[:, :-1]).all():
            return replace(mask, starts=reachable_keys - reachable.sum(axis=1))
        # `lengths` also moves the queries, so it serves right padding only where positions do not matter.
        if not positional and (reachable[:, 1:] <= reachable[:, :-1]).all():
            return replace(mask, lengths=reachable.sum(axis=1))
        return replace(mask, allowed=visible[:, None, None, :])


def read_pattern(function: MaskFunction) -> Pattern | None:
    """Return the pattern of a closure of transformers' helpers, None for others.

    Parameters
    ----------
    function : callable
        A mask function of ``transformers.masking_utils``, or any other.

    Examples
    --------
    >>> from transformers import masking_utils
    >>> read_pattern(masking_utils.sliding_window_causal_mask_function(4))
    Pattern(causal=True, left=3, right=None, documents=None)
    """
    pattern = None
    match identify_mask_function(function):
        case "causal_mask_function", _:
            pattern = Pattern(causal=True)
        case "bidirectional_mask_function", _:
            pattern = Pattern()
        case "sliding_window_overlay", {"sliding_window": window}:
            pattern = Pattern(left=window - 1)
        case "sliding_window_bidirectional_overlay", {"sliding_window": distance}:
            pattern = Pattern(left=distance, right=distance)
        case "packed_sequence_mask_function", {"packed_sequence_mask": documents}:
            pattern = Pattern(documents=documents)
        case "and_masks", {"mask_functions": functions}:
            pattern = _read_packed_pattern(functions) or _intersect_patterns(functions)
    return pattern


def _intersect_patterns(functions: tuple[MaskFunction, ...]) -> Pattern | None:
    intersection: Pattern | None = Pattern()
    for function in functions:
        pattern = read_pattern(function)
        if intersection is None or pattern is None:
            return None
        intersection = intersection.intersect(pattern)
    return intersection


def _read_packed_pattern(functions: tuple[MaskFunction, ...]) -> Pattern | None:
    """Return the pattern of packed documents whose positions begin again in each.

    Inside a document, positions must increase by one. Otherwise causal order and windows would differ between positions
    in the document and in the batch.
    """
    parts = dict(identify_mask_function(function) for function in functions)
    if len(functions) != 2 or parts.keys() != {"packed_sequence_mask_function", "remap_positions_for_packed_sequence"}:
        return None
    documents = parts["packed_sequence_mask_function"]["packed_sequence_mask"]
    remapped = parts["remap_positions_for_packed_sequence"]
    same_document = documents[:, 1:] == documents[:, :-1]
    pattern = read_pattern(remapped["mask_function"])
    if pattern is None or not bool((remapped["position_ids"].diff(dim=-1)[same_document] == 1).all()):
        return None
    return pattern.intersect(Pattern(documents=documents))


class LazyMask(torch.Tensor):  # type: ignore[misc]  # torch has no types here
    """A mask [B, 1, queries, keys] without storage.

    Models slice, copy and combine masks. Any operation works on the elements, which the first one makes; the attention
    function uses the layout alone.

    Parameters
    ----------
    layout : Layout
        Arguments of the mask function.
    dtype : torch.dtype
        Boolean elements are True for a visible key. Others are added to the scores: 0 for a visible key, and the lowest
        number of the dtype for a hidden one.
    """

    mask_layout: Layout

    @staticmethod
    def __new__(cls, layout: Layout, dtype: Any = torch.bool) -> Any:
        """Create a tensor without storage."""
        shape = (layout.batch, 1, layout.queries, layout.keys)
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=layout.device)
        self.mask_layout = layout
        return self

    @functools.cached_property
    def visible(self) -> Any:
        """The visible keys as a boolean tensor with storage."""
        return self.mask_layout.make_dense()

    @functools.cached_property
    def dense(self) -> Any:
        """The mask as a tensor with storage."""
        if self.dtype == torch.bool:
            return self.visible
        lowest = torch.finfo(self.dtype).min
        return torch.zeros_like(self.visible, dtype=self.dtype).masked_fill_(~self.visible, lowest)

    @functools.cached_property
    def mask(self) -> Mask | None:
        """The mask as a `keywise.Mask`, of linear size where possible; None if only the elements tell."""
        mask = self.mask_layout.make_mask()
        return Mask(allowed=self.visible) if mask is None else mask

    def __repr__(self, **_: Any) -> str:
        return f"LazyMask({list(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def materialise(value: Any) -> Any:
            if not isinstance(value, LazyMask):
                return value
            # The operation may write to the elements or keep them, so they are the mask from now on.
            value.mask = Mask(allowed=value.dense) if value.dtype == torch.bool else None
            return value.dense

        return function(*_pytree.tree_map(materialise, args), **_pytree.tree_map(materialise, kwargs or {}))


def make_mask(  # noqa: PLR0917  (transformers names and orders the arguments)
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction | None = None,
    attention_mask: Any = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    use_vmap: bool = False,
    device: Any = "cpu",
    dtype: Any = torch.float32,
    config: Any = None,
    **_: Any,
) -> Any:
    """Make a mask: None for plain causal attention, otherwise a `LazyMask`.

    transformers calls this function. None always means causal attention aligned at the last key. A mask under which
    every query sees every key is a `LazyMask` too, because None would be causal for the attention function.

    Models that are written for eager attention alone get eager attention's masks instead: additive, and None where
    every query sees every key.

    Parameters
    ----------
    batch_size, q_length, kv_length : int
        Sizes of the mask.
    q_offset, kv_offset : int or tensor
        Token positions of the first query and key.
    mask_function : callable, optional
        Whether a query sees a key; default causal.
    attention_mask : bool tensor [B, tokens], optional
        True for a real token, False for padding.
    local_size : int, optional
        Length of the window or chunk, where the layer has one.
    allow_is_causal_skip, allow_is_bidirectional_skip : bool
        Whether the result may be None, for the two kinds of models.
    use_vmap : bool
        Whether transformers evaluates `mask_function` by vmap, if the elements are needed.
    device : torch.device or str
        The device of the mask.
    dtype : torch.dtype
        Dtype of an additive mask.
    config : transformers.PreTrainedConfig, optional
        The model's configuration.
    **_
        Further keywords of transformers choose between forms that are the same here.

    Returns
    -------
    LazyMask or None
        Under `torch.compile` a tensor with storage instead of a `LazyMask`, which cannot be traced.
    """
    mask_function = masking_utils.causal_mask_function if mask_function is None else mask_function
    if torch.compiler.is_compiling():
        is_additive = config is not None and is_eager_only_constant(type(config))
        is_plain = mask_function is masking_utils.causal_mask_function and attention_mask is None and not is_additive
        # Kernels skip the keys of a causal mask, but read all elements of a dense one.
        if is_plain and isinstance(q_offset, int) and q_offset == 0 and q_length == kv_length and kv_offset == 0:
            return None
        return (masking_utils.eager_mask if is_additive else masking_utils.sdpa_mask)(
            batch_size,
            q_length,
            kv_length,
            q_offset,
            kv_offset,
            mask_function,
            attention_mask,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
            dtype=dtype,
        )
    is_additive = config is not None and is_eager_only(type(config))  # type: ignore[arg-type]  # classes are hashable
    layout = Layout(
        batch=batch_size,
        queries=q_length,
        keys=kv_length,
        first_query=int(q_offset),
        first_key=kv_offset,
        function=mask_function,
        padding=attention_mask,
        use_vmap=use_vmap and read_pattern(mask_function) is None,
        device=device,
    )
    has_skip = allow_is_bidirectional_skip if is_additive else allow_is_causal_skip and _ends_at_last_key(layout)
    if has_skip and not _has_window(layout, local_size) and _is_without_padding(layout):
        return None
    mask = LazyMask(layout, dtype if is_additive else torch.bool)
    if layout.use_vmap:
        # Evaluation by vmap needs a function mode, and modes are off while the mask's operations are dispatched.
        _ = mask.visible
    return mask


def _ends_at_last_key(layout: Layout) -> bool:
    return layout.first_key == 0 and layout.first_query + layout.queries == layout.keys


def _has_window(layout: Layout, local_size: int | None) -> bool:
    return local_size is not None and layout.keys > local_size


def _is_without_padding(layout: Layout) -> bool:
    if layout.padding is None:
        return True
    real = layout.padding[:, layout.first_key : layout.first_key + layout.keys]
    return real.shape[-1] == layout.keys and bool(real.all())
