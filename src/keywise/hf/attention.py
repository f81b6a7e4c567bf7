"""The attention function that transformers calls."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from keywise.attention.operation import run
from keywise.attention.stats_request import StatsRequest
from keywise.errors import ModelError
from keywise.hf.block_recording import find_recorders, has_open_recorders
from keywise.hf.compatibility import is_collecting_weights
from keywise.hf.joined import JoinedTensor, get_dense, split_chunks
from keywise.hf.keywords import check_keywords, check_traced_keywords, make_keyword_error
from keywise.hf.mask_arguments import add_biases, is_causal_without_mask, read_mask
from keywise.hf.masks import LazyMask
from keywise.hf.recording import find_collector, has_open_collectors
from keywise.torch.arguments import cast_for_autocast
from keywise.torch.functional import compute_attention


def forward(  # noqa: PLR0917  (transformers calls it this way)
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    *,
    position_bias: Any = None,
    softcap: float | None = None,
    s_aux: Any = None,
    sinks: Any = None,
    **others: Any,
) -> tuple[Any, None]:
    """Compute attention for a layer of transformers.

    Keys and values include those of the cache; positions are already in queries and keys.

    Parameters
    ----------
    module : torch.nn.Module
        The model's attention layer.
    query : [1 or B, Hq, Q, D]
    key : [B, Hkv, N, D]
    value : [B, Hkv, N, Dv]
        Keys and values of a `keywise.hf.Cache` may consist of several chunks.
    attention_mask : tensor or None
        The result of `make_mask`, possibly changed by the model, or the user's own boolean or additive mask. None is
        causal attention aligned at the last key, or no mask where the layer is not causal.
    dropout : float
        Probability that a weight is set to 0.
    scaling : float, optional
        Factor of the scores; default 1/sqrt(D).
    is_causal : bool, optional
        Overrides the module's own `is_causal` where there is no mask.
    position_bias : [1 or B, Hq, Q, N], optional
        Added to the scores.
    softcap : float, optional
        Bounds the scores, before bias and mask.
    s_aux, sinks : [Hq], optional
        Two names of an extra score per head that takes weight and adds no value.
    **others
        Further keywords of transformers. Those that cannot change the result are ignored; others raise an error.

    Returns
    -------
    tensor [B, Q, Hq, Dv], None
        The output; no weights.

    Raises
    ------
    ModelError
        The call needs an integer mask, sparse attention or weights, which are not supported.
    """
    if torch.compiler.is_compiling():
        if not _is_traceable(key):
            others.update(position_bias=position_bias, softcap=softcap, s_aux=s_aux, sinks=sinks)
            positional = (module, query, key, value, attention_mask, dropout, scaling, is_causal)
            return _forward_untraced(*positional, **others)[0], None
        check_traced_keywords(module, others)
    else:
        if is_collecting_weights():
            raise make_keyword_error(module, "output_attentions", True)
        check_keywords(module, others)
    if s_aux is not None and sinks is not None:
        raise ModelError(
            "s_aux",
            f"cannot be combined with sinks in {type(module).__name__}",
            remedy="they are two names of one argument; pass one",
        )
    sinks = s_aux if sinks is None else sinks
    if query.shape[0] == 1:
        query = query.expand(key.shape[0], -1, -1, -1)
    queries, keys = query.shape[2], key.shape[2]
    causal = is_causal_without_mask(module, is_causal)
    mask, mask_bias = read_mask(
        module, attention_mask, causal=causal and queries > 1, shape=(key.shape[0], queries, keys)
    )
    bias = add_biases(position_bias, mask_bias, query.dtype)
    query, key, value, bias = cast_for_autocast(query, key, value, bias)
    options = {
        "mask": mask,
        "bias": bias,
        "scale": None if scaling is None else float(scaling),
        "softcap": softcap,
        "sinks": sinks,
    }
    compute = _choose_computation(query, key, value, options, dropout)
    collector = None if torch.compiler.is_compiling() else find_collector(module)
    recorders = () if torch.compiler.is_compiling() else find_recorders(module)
    plan = None
    if collector is not None or recorders:
        if isinstance(attention_mask, LazyMask):
            first_query = attention_mask.mask_layout.first_query
            first_key = attention_mask.mask_layout.first_key
        else:
            # Without a layout, causal queries are the last positions and others the first.
            is_decoder = getattr(module, "is_causal", True) if is_causal is None else is_causal
            first_query = max(keys - queries, 0) if is_decoder else 0
            first_key = 0
        for recorder in recorders:
            recorder.add(query, key, options, first_query=first_query, first_key=first_key)
        if collector is not None:
            plan = collector.plan_call(module, queries=queries, keys=keys, first_query=first_query, first_key=first_key)
    if collector is None or plan is None:
        return compute(), None
    return collector.add(plan, compute(stats=plan.request, is_differentiable=collector.is_differentiable)), None


def _choose_computation(
    query: Any, key: Any, value: Any, options: dict[str, Any], dropout: float
) -> Callable[..., Any]:
    """Return the call that computes attention: in place for inference, by the custom operators for training."""
    tensors = (query, key, value, options["bias"], options["sinks"])
    has_gradient = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
    if not (has_gradient or dropout or torch.compiler.is_compiling()):
        return functools.partial(_compute_in_place, query, key, value, options)
    return functools.partial(_compute_for_training, query, key, value, options, dropout)


def _compute_in_place(
    query: Any,
    key: Any,
    value: Any,
    options: dict[str, Any],
    *,
    stats: StatsRequest | None = None,
    is_differentiable: bool = False,
) -> Any:
    if is_differentiable:
        raise ModelError(
            "differentiable",
            "must be False where attention has no gradient",
            got=True,
            remedy="leave torch.no_grad(), or checkpoint gradients with use_reentrant=False",
        )
    key, value = split_chunks(key, value)
    return run(query, key, value, **options, stats=stats, transposed_output=True)


def _compute_for_training(
    query: Any,
    key: Any,
    value: Any,
    options: dict[str, Any],
    dropout: float,
    *,
    stats: StatsRequest | None = None,
    is_differentiable: bool = False,
) -> Any:
    return compute_attention(
        query,
        get_dense(key),
        get_dense(value),
        **options,
        dropout_p=float(dropout),
        stats=stats,
        has_stats_gradients=is_differentiable,
        transposed_output=True,
    )


def _is_traceable(key: Any) -> bool:
    """Return whether a compiled graph can hold this call: no record of statistics, and keys with storage."""
    return not (has_open_collectors() or has_open_recorders()) and not isinstance(key, JoinedTensor)


# torch.compile breaks the graph here: neither records nor chunks of keys can be traced.
_forward_untraced = torch.compiler.disable(forward)
