"""Multi-head attention with its projections, as torch.nn.functional.multi_head_attention_forward defines it."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from keywise.attention.mask import Mask
from keywise.attention.stats import AttentionStats
from keywise.attention.stats_request import StatsRequest
from keywise.errors import DtypeError, OptionError, ShapeError
from keywise.torch.arguments import check_tensor
from keywise.torch.functional import compute_attention


class Projections(NamedTuple):
    """Parameters of multi-head attention, named as in ``torch.nn.MultiheadAttention``.

    Attributes
    ----------
    num_heads
        Number of heads.
    in_proj_weight
        [3E, E] of query, key and value, or None with separate weights.
    q_proj_weight, k_proj_weight, v_proj_weight
        Separate weights [E, E], [E, kdim] and [E, vdim], or None.
    in_proj_bias
        [3E] or None.
    bias_k, bias_v
        [1, 1, E], an extra key and value, or None.
    add_zero_attn
        Whether a key and a value of zeros follow.
    out_proj_weight, out_proj_bias
        [E, E], and [E] or None.
    """

    num_heads: int
    in_proj_weight: Any
    q_proj_weight: Any
    k_proj_weight: Any
    v_proj_weight: Any
    in_proj_bias: Any
    bias_k: Any
    bias_v: Any
    add_zero_attn: bool
    out_proj_weight: Any
    out_proj_bias: Any


def multi_head_attention_forward(  # noqa: PLR0917  (torch orders the arguments)
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = False,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Any, Any]:
    """Compute multi-head attention with the arguments of ``torch.nn.functional.multi_head_attention_forward``.

    Parameters
    ----------
    query, key, value : tensor
        [L, E], [S, kdim] and [S, vdim], or with a batch axis in the middle: [L, B, E] ...
    embed_dim_to_check : int
        The size E that is expected.
    num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn, out_proj_weight, out_proj_bias
        As in `Projections`.
    dropout_p : float
        Probability that a weight is set to 0 in training.
    training : bool
        Whether there is dropout.
    key_padding_mask, attn_mask, is_causal, need_weights, average_attn_weights
        As in `attend_with_projections`.
    use_separate_proj_weight : bool
        Whether the separate weights are used.
    q_proj_weight, k_proj_weight, v_proj_weight
        As in `Projections`.
    static_k, static_v : tensor
        Must be None.

    Returns
    -------
    (tensor, tensor or None)
        The output in the layout of the query, and the weights if they are needed.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used.
    """
    if static_k is not None or static_v is not None:
        raise OptionError("static_k", "must be None, and static_v too", remedy="use torch's own attention")
    if query.shape[-1] != embed_dim_to_check:
        raise ShapeError("query", f"must have {embed_dim_to_check} features, got shape {list(query.shape)}")
    projections = Projections(
        num_heads=num_heads,
        in_proj_weight=None if use_separate_proj_weight else in_proj_weight,
        q_proj_weight=q_proj_weight,
        k_proj_weight=k_proj_weight,
        v_proj_weight=v_proj_weight,
        in_proj_bias=in_proj_bias,
        bias_k=bias_k,
        bias_v=bias_v,
        add_zero_attn=add_zero_attn,
        out_proj_weight=out_proj_weight,
        out_proj_bias=out_proj_bias,
    )
    return attend_with_projections(
        projections,
        query,
        key,
        value,
        batch_first=False,
        dropout_p=dropout_p if training else 0.0,
        key_padding_mask=key_padding_mask,
        attn_mask=attn_mask,
        is_causal=is_causal,
        need_weights=need_weights,
        average_attn_weights=average_attn_weights,
    )


def attend_with_projections(
    projections: Projections,
    query: Any,
    key: Any,
    value: Any,
    *,
    batch_first: bool,
    dropout_p: float = 0.0,
    key_padding_mask: Any = None,
    attn_mask: Any = None,
    is_causal: bool = False,
    need_weights: bool = False,
    average_attn_weights: bool = True,
    stats: Any = None,
) -> tuple[Any, Any]:
    """Project, attend and project back.

    Parameters
    ----------
    projections : Projections
        The parameters.
    query, key, value : tensor
        [L, E], [S, kdim] and [S, vdim], or with a batch axis before or after the tokens.
    batch_first : bool
        Whether the batch axis comes first.
    dropout_p : float
        Probability that a weight is set to 0.
    key_padding_mask : tensor [B, S] or [S], optional
        Boolean, True where a key is ignored, or floats that are added to the scores.
    attn_mask : tensor [L, S] or [B * heads, L, S], optional
        Boolean, True where a query may not attend, or floats that are added to the scores.
    is_causal : bool
        Whether `attn_mask` is the causal mask; it is not read then.
    need_weights : bool
        Whether to compute the dense weights, of n x n elements.
    average_attn_weights : bool
        Whether these are averaged over the heads.
    stats : StatsRequest or keywise.hf.StatsSpec, optional
        Which statistics to compute; not together with `need_weights`.

    Returns
    -------
    (tensor, tensor or AttentionStats or None)
        The output in the layout of the query; the weights or the statistics.

    Raises
    ------
    ShapeError, DtypeError, OptionError, TargetError
        An argument cannot be used.
    """
    if need_weights and stats is not None:
        raise OptionError("need_weights", "must be False with stats", got=True, remedy="call twice for both")
    if is_causal and attn_mask is None:
        raise OptionError("is_causal", "must be False without attn_mask, which it describes", got=True)
    is_batched = query.dim() == 3
    query, key, value = _add_batch_axis(query, key, value, batch_first=batch_first)
    heads = projections.num_heads
    batch, queries, keys = query.shape[0], query.shape[1], key.shape[1]
    if key_padding_mask is not None and not is_batched:
        key_padding_mask = key_padding_mask.unsqueeze(0)
    query_heads, key_heads, value_heads = _project(projections, query, key, value)
    key_heads, value_heads, extra_keys = _append_keys(projections, key_heads, value_heads)
    mask, bias = _read_masks(
        key_padding_mask,
        attn_mask,
        is_causal=is_causal and not extra_keys,
        shape=(batch, heads, queries, keys),
        extra_keys=extra_keys,
        dtype=query_heads.dtype,
    )
    request = _request_weights(keys + extra_keys, query.device) if need_weights else _make_request(stats, queries)
    result = compute_attention(
        query_heads,
        key_heads,
        value_heads,
        mask=mask,
        upper_left=True,
        bias=bias,
        dropout_p=dropout_p,
        transposed_output=True,
        stats=request,
    )
    attended = result if request is None else result.output
    output = attended.reshape(batch, queries, heads * attended.shape[-1])
    if not batch_first:
        output = output.transpose(0, 1)
    output = functional.linear(output, projections.out_proj_weight, projections.out_proj_bias)
    if not is_batched:
        output = output.squeeze(0 if batch_first else 1)
    if request is None:
        return output, None
    if not need_weights:
        return output, _drop_output(result)
    weights = result.segment_mass.to(output.dtype)
    weights = weights.mean(dim=1) if average_attn_weights else weights
    return output, weights if is_batched else weights.squeeze(0)


def _add_batch_axis(query: Any, key: Any, value: Any, *, batch_first: bool) -> tuple[Any, Any, Any]:
    """Return query, key and value as [B, tokens, features], the same object where they were the same."""
    tensors = {"query": query, "key": key, "value": value}
    for name, tensor in tensors.items():
        check_tensor(name, tensor)
        if tensor.dim() != query.dim() or tensor.dim() not in (2, 3):
            raise ShapeError(
                name, f"must have 3 axes, or 2 without a batch, as the query has, got shape {list(tensor.shape)}"
            )
    converted: dict[int, Any] = {}
    for tensor in tensors.values():
        batched = tensor.unsqueeze(0) if tensor.dim() == 2 else tensor
        is_sequence_first = tensor.dim() == 3 and not batch_first
        converted.setdefault(id(tensor), batched.transpose(0, 1) if is_sequence_first else batched)
    query, key, value = (converted[id(tensor)] for tensor in tensors.values())
    if key.shape[:2] != value.shape[:2] or key.shape[0] != query.shape[0]:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (query, key, value))
        raise ShapeError("key", f"must have the query's batch and the value's tokens, got batch-first shapes {shapes}")
    return query, key, value


def _project(projections: Projections, query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """Return projected query, key and value as [B, heads, tokens, head_dim]."""
    width = query.shape[-1]
    weight, bias = projections.in_proj_weight, projections.in_proj_bias
    if weight is None:
        separate = (projections.q_proj_weight, projections.k_proj_weight, projections.v_proj_weight)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        inputs = zip((query, key, value), separate, biases, strict=True)
        projected = [functional.linear(tensor, matrix, vector) for tensor, matrix, vector in inputs]
    elif query is key and key is value:
        # One product instead of three; kernels read the parts in place.
        projected = list(functional.linear(query, weight, bias).chunk(3, dim=-1))
    elif key is value:
        biases = (None, None) if bias is None else bias.split([width, 2 * width])
        matrices = weight.split([width, 2 * width])
        keys_and_values = functional.linear(key, matrices[1], biases[1])
        projected = [functional.linear(query, matrices[0], biases[0]), *keys_and_values.chunk(2, dim=-1)]
    else:
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        inputs = zip((query, key, value), weight.chunk(3), biases, strict=True)
        projected = [functional.linear(tensor, matrix, vector) for tensor, matrix, vector in inputs]
    query_heads, key_heads, value_heads = (_split_heads(tensor, projections.num_heads) for tensor in projected)
    return query_heads, key_heads, value_heads


def _split_heads(tensor: Any, heads: int) -> Any:
    return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)


def _append_keys(projections: Projections, key: Any, value: Any) -> tuple[Any, Any, int]:
    """Return keys and values with the learned extra key and the key of zeros, and how many were appended."""
    extra_keys = 0
    if projections.bias_k is not None:
        extra = [_split_heads(bias, projections.num_heads) for bias in (projections.bias_k, projections.bias_v)]
        key, value = (
            torch.cat([tensor, more.expand(tensor.shape[0], -1, -1, -1).to(tensor.dtype)], dim=2)
            for tensor, more in zip((key, value), extra, strict=True)
        )
        extra_keys += 1
    if projections.add_zero_attn:
        key, value = (functional.pad(tensor, (0, 0, 0, 1)) for tensor in (key, value))
        extra_keys += 1
    return key, value, extra_keys


def _read_masks(
    key_padding_mask: Any,
    attn_mask: Any,
    *,
    is_causal: bool,
    shape: tuple[int, int, int, int],
    extra_keys: int,
    dtype: Any,
) -> tuple[Mask, Any]:
    """Return the visible keys and the bias of both masks; appended keys are visible to every query."""
    masks = []
    if key_padding_mask is not None:
        masks.append(_check_mask("key_padding_mask", key_padding_mask, shape, extra_keys))
    if attn_mask is not None and not is_causal:
        masks.append(_check_mask("attn_mask", attn_mask, shape, extra_keys))
    hidden = [mask for mask in masks if mask.dtype == torch.bool]
    allowed = ~functools.reduce(torch.logical_or, hidden) if hidden else None
    floats = [mask for mask in masks if mask.dtype != torch.bool]
    bias = functools.reduce(torch.add, floats) if floats else None
    if bias is not None and bias.dtype not in (torch.float32, dtype):
        bias = bias.to(dtype)
    return Mask(causal=is_causal, allowed=allowed), bias


def _check_mask(name: str, mask: Any, shape: tuple[int, int, int, int], extra_keys: int) -> Any:
    """Return one of the two masks with 4 axes; the appended keys are visible."""
    batch, heads, queries, keys = shape
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise DtypeError(name, f"must be boolean (True = hidden) or of floats, got {mask.dtype}")
    is_padding = name == "key_padding_mask"
    expected = [(batch, keys)] if is_padding else [(queries, keys), (batch * heads, queries, keys)]
    if tuple(mask.shape) not in expected:
        choices = " or ".join(str(list(sizes)) for sizes in expected)
        raise ShapeError(name, f"must have shape {choices}, got {list(mask.shape)}")
    padded = functional.pad(mask, (0, extra_keys)) if extra_keys else mask
    if is_padding:
        return padded[:, None, None, :]
    return padded[None, None] if padded.dim() == 2 else padded.unflatten(0, (batch, heads))


def _make_request(stats: Any, queries: int) -> StatsRequest | None:
    if stats is None or isinstance(stats, StatsRequest):
        return stats
    # A specification of keywise.hf, which this package does not import.
    if not hasattr(stats, "make_request"):
        raise DtypeError(
            "stats", f"must be a keywise.torch.StatsRequest or a keywise.hf.StatsSpec, got a {type(stats).__name__}"
        )
    request: StatsRequest = stats.make_request(queries)
    return request


def _request_weights(keys: int, device: Any) -> StatsRequest:
    # A segment of one key has the weight of that key.
    return StatsRequest(top_k=0, segment_bounds=torch.arange(keys + 1, device=device), key_mass=False)


def _drop_output(stats: Any) -> AttentionStats:
    fields = vars(stats) | {"output": None}
    return AttentionStats(**fields)
