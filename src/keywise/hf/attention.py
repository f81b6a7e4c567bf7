"""The attention function that transformers calls."""

from __future__ import annotations

from typing import Any

import torch

from keywise.attention.operation import run
from keywise.errors import ModelError
from keywise.hf.compatibility import is_collecting_weights
from keywise.hf.joined import split_chunks
from keywise.hf.keywords import check_keywords, make_keyword_error
from keywise.hf.mask_arguments import add_biases, is_causal_without_mask, read_mask
from keywise.hf.masks import LazyMask
from keywise.hf.recording import find_collector


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
        Must be 0.
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
        The call needs dropout, gradients, an integer mask, sparse attention or weights, which are not supported.
    """
    if torch.compiler.is_compiling():
        others.update(position_bias=position_bias, softcap=softcap, s_aux=s_aux, sinks=sinks)
        positional = (module, query, key, value, attention_mask, dropout, scaling, is_causal)
        return _forward_untraced(*positional, **others)[0], None
    _refuse_unsupported(module, dropout, others)
    if s_aux is not None and sinks is not None:
        raise ModelError(
            "s_aux",
            f"cannot be combined with sinks in {type(module).__name__}",
            remedy="they are two names of one argument; pass one",
        )
    sinks = s_aux if sinks is None else sinks
    _refuse_gradients(module, query=query, key=key, value=value, position_bias=position_bias, sinks=sinks)
    if query.shape[0] == 1:
        query = query.expand(key.shape[0], -1, -1, -1)
    queries = query.shape[2]
    keys = key.shape[2]
    causal = is_causal_without_mask(module, is_causal)
    batch = key.shape[0]
    key, value = split_chunks(key, value)
    mask, mask_bias = read_mask(module, attention_mask, causal=causal and queries > 1, shape=(batch, queries, keys))
    arguments = {
        "mask": mask,
        "bias": add_biases(position_bias, mask_bias, query.dtype),
        "scale": None if scaling is None else float(scaling),
        "softcap": softcap,
        "sinks": None if sinks is None else sinks.detach(),
        "transposed_output": True,
    }
    collector = find_collector(module)
    if collector is None:
        return run(query, key, value, **arguments), None
    if isinstance(attention_mask, LazyMask):
        first_query = attention_mask.mask_layout.first_query
        first_key = attention_mask.mask_layout.first_key
    else:
        # Without a layout, causal queries are the last positions and others the first.
        is_decoder = getattr(module, "is_causal", True) if is_causal is None else is_causal
        first_query = max(keys - queries, 0) if is_decoder else 0
        first_key = 0
    plan = collector.plan_call(module, queries=queries, keys=keys, first_query=first_query, first_key=first_key)
    if plan is None:
        return run(query, key, value, **arguments), None
    return collector.add(plan, run(query, key, value, **arguments, stats=plan.request)), None


# torch.compile breaks the graph here: nothing inside can be traced.
_forward_untraced = torch.compiler.disable(forward)


def _refuse_unsupported(module: Any, dropout: float, others: dict[str, Any]) -> None:
    if dropout:
        raise ModelError(
            "dropout",
            f"must be 0 in {type(module).__name__}",
            got=dropout,
            remedy="call model.eval() or set the config's dropout to 0",
        )
    if is_collecting_weights():
        raise make_keyword_error(module, "output_attentions", True)
    check_keywords(module, others)


def _refuse_gradients(module: Any, **tensors: Any) -> None:
    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise ModelError(
                name,
                f"must not require gradients in {type(module).__name__}",
                remedy="call the model inside torch.no_grad(), or train it with another attention",
            )
