"""Differentiable attention for torch: attend, attention_stats and scaled_dot_product_attention."""

from __future__ import annotations

import math
from typing import Any

import torch

from keywise.attention.mask import Mask
from keywise.attention.stats import AttentionStats
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.torch.arguments import cast_for_autocast, check_inputs, check_tensor
from keywise.torch.operators import run_attention
from keywise.torch.settings import split_settings


def attend(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout_p: float = 0.0,
) -> Any:
    """Compute attention with gradients; causal masks are aligned to the lower right.

    Gradients of query, key, value, bias and sinks are computed in memory linear in the number of tokens. The call can
    be compiled, exported and mapped by ``torch.vmap``.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks
        As in `keywise.attend`, as tensors.
    dropout_p : float
        Probability that a weight is set to 0; the others are multiplied by 1 / (1 - dropout_p). The random numbers come
        from torch's generator.

    Returns
    -------
    tensor [B, Hq, Q, Dv]
        In the query's dtype; 0 where a query may see no key.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import torch, keywise as kw, keywise.torch
    >>> x = torch.ones(1, 2, 5, 8, requires_grad=True)
    >>> keywise.torch.attend(x, x, x, mask=kw.Mask(causal=True)).sum().backward()
    >>> x.grad.shape
    torch.Size([1, 2, 5, 8])
    """
    return compute_attention(
        query, key, value, mask=mask, bias=bias, scale=scale, softcap=softcap, sinks=sinks, dropout_p=dropout_p
    )


def attention_stats(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout_p: float = 0.0,
    top_k: int = 8,
    segment_bounds: Any = None,
    segment_ids: Any = None,
    query_weights: Any = None,
) -> AttentionStats:
    """Compute attention and its statistics, with gradients of both.

    A loss may use `output`, `lse`, `entropy`, `key_mass` and `segment_mass`. `top_weights` and `top_mass` raise an
    error in the backward pass, because the choice of the heaviest keys is not differentiable. Statistics are of the
    weights before dropout. Memory is linear in the number of tokens.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks, dropout_p
        As in `attend`.
    top_k, segment_bounds, segment_ids, query_weights
        As in `keywise.attention_stats`.

    Returns
    -------
    AttentionStats

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import torch, keywise.torch
    >>> query, key = torch.randn(1, 1, 3, 8, requires_grad=True), torch.randn(1, 1, 4, 8)
    >>> stats = keywise.torch.attention_stats(query, key, key, segment_bounds=[0, 1, 4])
    >>> (-stats.segment_mass[..., 0].log().mean()).backward()  # move the attention to key 0
    >>> query.grad.shape
    torch.Size([1, 1, 3, 8])
    """
    stats: AttentionStats = compute_attention(
        query,
        key,
        value,
        mask=mask,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_p=dropout_p,
        stats=StatsRequest(top_k, segment_bounds, segment_ids, query_weights),
    )
    return stats


def compute_attention(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    upper_left: bool = False,
    bias: Any = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Any = None,
    dropout_p: float = 0.0,
    transposed_output: bool = False,
    stats: StatsRequest | None = None,
    has_stats_gradients: bool = True,
) -> Any:
    """Compute attention by the custom operators, with the options that layers of models need.

    Parameters
    ----------
    query, key, value, mask, bias, scale, softcap, sinks, dropout_p
        As in `attend`.
    upper_left : bool
        Whether query i stands at key position i, as in torch.
    transposed_output : bool
        Return the output as [B, Q, Hq, Dv].
    stats : StatsRequest, optional
        Which statistics to compute, and for which queries.
    has_stats_gradients : bool
        Whether a loss may use the statistics.

    Returns
    -------
    tensor or AttentionStats
        The output; with `stats`, the output and the statistics.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used.
    """
    query, key, value, bias = cast_for_autocast(query, key, value, bias)
    check_inputs(query, key, value)
    tensors, numbers = split_settings(
        mask=mask,
        upper_left=upper_left,
        bias=bias,
        scale=scale,
        softcap=softcap,
        sinks=sinks,
        dropout_p=dropout_p,
        transposed_output=transposed_output,
        stats=stats,
        has_stats_gradients=has_stats_gradients and stats is not None,
    )
    output, lse, _, entropy, top_keys, top_weights, top_mass, key_mass, segment_mass = run_attention(
        query, key, value, *tensors, *numbers
    )
    if stats is None:
        return output
    first, last = stats.queries or (0, query.shape[2])
    # A compiled function has gradients of all its results, zeros for those that a loss does not use.
    if lse.requires_grad and not torch.compiler.is_compiling():
        top_weights, top_mass = (
            _NotDifferentiable.apply(tensor, lse, name)
            for name, tensor in (("top_weights", top_weights), ("top_mass", top_mass))
        )
    return AttentionStats(
        output=output,
        lse=lse[:, :, first:last],
        entropy=entropy,
        top_keys=top_keys,
        top_weights=top_weights,
        top_mass=top_mass,
        key_mass=key_mass if stats.key_mass else None,
        segment_mass=None if tensors.segment_numbers is None else segment_mass,
    )


class _NotDifferentiable(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    """Raise an error in the backward pass of a tensor that has no gradient, where torch would ignore it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(tensor: Any, _anchor: Any, _name: str) -> Any:
        return tensor.view_as(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.name = inputs[2]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        if gradient is None:
            return None, None, None
        raise OptionError(
            ctx.name,
            "must not enter a loss, because the choice of the heaviest keys is not differentiable",
            remedy=f"use {ctx.name}.detach(), or a loss on lse, entropy, key_mass or segment_mass",
        )


def scaled_dot_product_attention(  # noqa: PLR0917  (torch orders the arguments)
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute attention as ``F.scaled_dot_product_attention`` does; causal masks are aligned to the upper left.

    Gradients are computed in memory linear in the number of tokens, `attn_mask` included: a mask that is broadcast has
    a gradient of its own shape. A query that may see no key has output 0.

    Parameters
    ----------
    query : tensor [..., Hq, L, E]
        From 2 axes; leading axes of query, key and value broadcast against each other.
    key : tensor [..., H, S, E]
    value : tensor [..., H, S, Ev]
        Ev may differ from E.
    attn_mask : tensor, optional
        Broadcasts to [..., Hq, L, S]. Boolean: True where a query may attend. Float: added to the scores; float32 or
        the query's dtype.
    dropout_p : float
        Probability that a weight is set to 0, whether or not a module is in training mode.
    is_causal : bool
        Whether query i sees keys 0 to i alone; not together with `attn_mask`.
    scale : float, optional
        Multiplies the scores; default 1 / sqrt(E).
    enable_gqa : bool
        Whether Hq may be a multiple of H: query head h uses key head h // (Hq / H).

    Returns
    -------
    tensor [..., Hq, L, Ev]

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used; the error names it, its value and the rule.

    Examples
    --------
    >>> import torch, keywise.torch
    >>> x = torch.randn(2, 4, 6, 8)
    >>> expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    >>> torch.allclose(keywise.torch.scaled_dot_product_attention(x, x, x, is_causal=True), expected, atol=1e-5)
    True
    """
    query, key, value, attn_mask = cast_for_autocast(query, key, value, attn_mask)
    lead = _broadcast_leading_axes(query, key, value, enable_gqa=enable_gqa)
    if is_causal and attn_mask is not None:
        raise OptionError("is_causal", "must be False with attn_mask", got=True, remedy="put both into attn_mask")
    allowed, bias = _read_mask(attn_mask, (*lead, query.shape[-2], key.shape[-2]))
    heads = lead[-1] if lead else 1
    key_heads = _choose_key_heads(key, value, heads)
    output = compute_attention(
        _flatten(query, lead, heads),
        _flatten(key, lead, key_heads),
        _flatten(value, lead, key_heads),
        mask=Mask(causal=is_causal, allowed=allowed),
        upper_left=True,
        bias=bias,
        scale=scale,
        dropout_p=dropout_p,
    )
    return output.reshape(*lead, query.shape[-2], value.shape[-1])


def _broadcast_leading_axes(query: Any, key: Any, value: Any, *, enable_gqa: bool) -> tuple[Any, ...]:
    """Return the common sizes of all axes but the last two, with the query's number of heads."""
    leads = []
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, tensor)
        if tensor.dim() < 2 + enable_gqa:
            raise ShapeError(name, f"must have {2 + enable_gqa} axes or more, got shape {list(tensor.shape)}")
        lead = tuple(tensor.shape[:-2])
        if enable_gqa:
            if lead[-1] == 0 or query.shape[-3] % lead[-1]:
                raise ShapeError(
                    name, f"must have heads that divide the query's {query.shape[-3]}, got shape {list(tensor.shape)}"
                )
            lead = (*lead[:-1], query.shape[-3])
        leads.append(lead)
    if leads[0] == leads[1] == leads[2]:
        return leads[0]
    try:
        return tuple(torch.broadcast_shapes(*leads))
    except RuntimeError as error:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (query, key, value))
        raise ShapeError(
            "query", f"must broadcast with key and value in all but two axes, got shapes {shapes}"
        ) from error


def _read_mask(attn_mask: Any, scores: tuple[Any, ...]) -> tuple[Any, Any]:
    """Return a mask as visible keys or as a bias, with 4 axes."""
    if attn_mask is None:
        return None, None
    if not isinstance(attn_mask, torch.Tensor):
        raise DtypeError("attn_mask", f"must be a torch.Tensor, got a {type(attn_mask).__name__}")
    if attn_mask.dtype != torch.bool and not attn_mask.is_floating_point():
        raise DtypeError(
            "attn_mask",
            f"must be boolean (True = may attend) or of floats, got {attn_mask.dtype}",
            remedy="use .bool()",
        )
    shape = tuple(attn_mask.shape)
    sizes = zip(reversed(shape), reversed(scores), strict=False)
    if len(shape) > len(scores) or any(size not in (1, full) for size, full in sizes):
        raise ShapeError("attn_mask", f"must broadcast to {list(scores)}, got shape {list(shape)}")
    padded = attn_mask.reshape((1,) * (max(4, len(scores)) - len(shape)) + shape)
    if padded.dim() > 4:
        batch_axes = padded.shape[:-3]
        if any(size != 1 for size in batch_axes):
            padded = padded.expand(*scores[:-3], *padded.shape[-3:])
        padded = padded.reshape(-1, *padded.shape[-3:])
    return (padded, None) if attn_mask.dtype == torch.bool else (None, padded)


def _choose_key_heads(key: Any, value: Any, heads: Any) -> Any:
    """Return the number of heads that key and value keep; all heads if the two differ."""
    key_heads = key.shape[-3] if key.dim() > 2 else 1
    value_heads = value.shape[-3] if value.dim() > 2 else 1
    return key_heads if key_heads == value_heads else heads


def _flatten(tensor: Any, lead: tuple[Any, ...], heads: Any) -> Any:
    """Return a tensor as [batch, heads, tokens, width], broadcast to the leading axes."""
    if tensor.dim() == 4 and tensor.shape[:2] == (*lead[:-1], heads):
        return tensor
    own_heads = tensor.shape[-3] if tensor.dim() > 2 else 1
    if own_heads not in (1, heads):
        tensor = tensor.repeat_interleave(heads // own_heads, dim=-3)
    expanded = tensor.expand(*lead[:-1], heads, *tensor.shape[-2:])
    return expanded.reshape(math.prod(lead[:-1]), heads, *tensor.shape[-2:])
