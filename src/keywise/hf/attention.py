"""The attention function that transformers calls: its conventions in, `keywise.attention` out."""

# ruff: noqa: PLC0415  (torch and transformers are slow to import, or absent: only calls need them)

from __future__ import annotations

from typing import Any

from keywise.attention.mask import Mask
from keywise.attention.operation import run
from keywise.errors import ModelError
from keywise.hf.joined import apart
from keywise.hf.masks import lazy_mask_class
from keywise.hf.stats_record import collector_of

# What models pass along that says nothing the mask, the rotated keys or the sizes do not say already.
INFORMATION_ONLY = frozenset(
    {
        "attention_gate",
        "deterministic",
        "encoder_attention_mask",
        "encoder_hidden_states",
        "encoder_position_embeddings",
        "interpolate_pos_encoding",
        "layer_idx",
        "logits_to_keep",
        "max_length_k",
        "max_length_q",
        "num_items_in_batch",
        "output_hidden_states",
        "output_router_logits",
        "past_key_values",
        "position_embeddings",
        "position_ids",
        "query_length",
        "return_dict",
        "shared_kv_states",
        "sliding_window",
        "spatial_shapes",
        "token_type_ids",
        "use_cache",
    }
)

_PACKED = "packed sequences are read from position_ids: pass those, with use_cache=False and without attention_mask"
REFUSED = {
    "output_attentions": "it asks for n x n weights per head; read the model inside keywise.hf.record_stats(model) instead",
    "indices": "attention over chosen keys only is not supported; use another attention for this model",
    "block_indices": "attention over chosen blocks only is not supported; use another attention for this model",
    "cache": "paged caches are not supported; use generate() with its ordinary caches",
    "cu_seq_lens_q": _PACKED,
    "cu_seq_lens_k": _PACKED,
    "seq_idx": _PACKED,
}


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
    """Attend as transformers asks; keys and values hold the cache already, and positions are already in them.

    Parameters
    ----------
    module : torch.nn.Module
        The model's attention layer; names the layer in readings.
    query : [1 or B, Hq, Q, D]
    key : [B, Hkv, N, D]
    value : [B, Hkv, N, Dv]
        `keywise.hf.Cache` may hand both over in several pieces.
    attention_mask : tensor or None
        What the model made of `make_mask`'s answer, or the user's own boolean or additive mask. None is causal
        attention aligned at the last key, or none at all when the layer is not causal.
    dropout : float
        0 only.
    scaling : float, optional
        Factor of the scores as the model wants it; default 1/sqrt(D).
    is_causal : bool, optional
        Overrides the module's own `is_causal` where there is no mask.
    position_bias : [1 or B, Hq, Q, N], optional
        Added to the scores.
    softcap : float, optional
        Bounds the scores before bias and mask.
    s_aux, sinks : [Hq], optional
        An extra score per head that takes weight and gives no value; two names of one thing.

    Returns
    -------
    tensor [B, Q, Hq, Dv], None
        No weights: `keywise.hf.reading` is the way to them.

    Raises
    ------
    ModelError
        When the call wants what keywise does not do: dropout, gradients, integer masks, sparse attention, weights.
    """
    _refuse(module, dropout, others)
    if s_aux is not None and sinks is not None:
        raise _error(module, "s_aux and sinks are both given", "they are one thing under two names; pass one")
    sinks = s_aux if sinks is None else sinks
    _refuse_gradients(module, query=query, key=key, value=value, position_bias=position_bias, sinks=sinks)
    if query.shape[0] == 1:
        query = query.expand(key.shape[0], -1, -1, -1)
    queries, keys = query.shape[2], key.shape[2]
    causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
    key, value = apart(key, value)
    mask, bias = mask_and_bias(module, attention_mask, bool(causal) and queries > 1)
    arguments = {
        "mask": mask,
        "bias": added(position_bias, bias, query.dtype),
        "scale": None if scaling is None else float(scaling),
        "softcap": softcap,
        "sinks": None if sinks is None else sinks.detach(),
        "transposed_output": True,
    }
    collector = collector_of(module)
    if collector is None:
        return run(query, key, value, **arguments), None
    if isinstance(attention_mask, lazy_mask_class()):
        first_query, first_key = attention_mask.mask_layout.first_query, attention_mask.mask_layout.first_key
    else:
        # Without a layout the queries are the last ones where order matters, else the first.
        first_query, first_key = max(keys - queries, 0) if causal else 0, 0
    plan = collector.plan(module, queries=queries, keys=keys, first_query=first_query, first_key=first_key)
    if plan is None:
        return run(query, key, value, **arguments), None
    return collector.keep(plan, run(query, key, value, **arguments, stats=plan.want)), None


def _refuse(module: Any, dropout: float, others: dict[str, Any]) -> None:
    if dropout:
        raise _error(module, f"dropout={dropout}", "keywise has no dropout; call model.eval() or set the config's to 0")
    if _weights_are_collected():
        raise _error(module, "output_attentions=True", REFUSED["output_attentions"])
    for name, value in others.items():
        if value is None or value is False or name in INFORMATION_ONLY:
            continue
        # softcap and s_aux were unknown once: an unknown keyword may change the result, so it is never passed over.
        remedy = REFUSED.get(name, "keywise does not know this keyword; leave it out, or use another attention")
        shown = value if isinstance(value, (bool, int, float, str)) else f"<{type(value).__name__}>"
        raise _error(module, f"{name}={shown}", remedy)


def _weights_are_collected() -> bool:
    """Whether transformers gathers weights by hooks: some models do not pass output_attentions on to their layers."""
    from transformers.utils import output_capturing

    collected = output_capturing._active_collector.get()
    return collected is not None and any(key.endswith("attentions") for key in collected)


def _refuse_gradients(module: Any, **tensors: Any) -> None:
    import torch

    if not torch.is_grad_enabled():
        return
    for name, tensor in tensors.items():
        if tensor is not None and tensor.requires_grad:
            raise _error(
                module,
                f"{name} requires gradients",
                "keywise has no backward pass; call the model inside torch.no_grad(), or train with another attention",
            )


def _error(module: Any, what: str, remedy: str) -> ModelError:
    return ModelError(f"{type(module).__name__}: {what}: {remedy}")


def mask_and_bias(module: Any, attention_mask: Any, causal: bool) -> tuple[Mask | None, Any]:
    """Say what a mask that reaches the attention function means: who sees whom, and what is added to the scores."""
    import torch

    if attention_mask is None:
        return (Mask(causal=True) if causal else None), None
    if isinstance(attention_mask, lazy_mask_class()):
        return attention_mask.mask, None
    if attention_mask.dtype == torch.bool:
        return Mask(allowed=attention_mask), None
    if not attention_mask.is_floating_point():
        raise _error(
            module,
            f"attention_mask has dtype {attention_mask.dtype} and {attention_mask.ndim} axes",
            "give mask.bool() (True = may attend) or a float mask that is added to the scores",
        )
    # Models hide by the lowest number of the mask's type, or by sums of two such numbers.
    hidden = attention_mask <= torch.finfo(attention_mask.dtype).min / 2
    added = attention_mask.masked_fill(hidden, 0)
    return Mask(allowed=~hidden), added if bool(added.any()) else None


def added(position_bias: Any, mask_bias: Any, dtype: Any) -> Any:
    """Add what positions and the mask add to the scores; None when neither does."""
    import torch

    if position_bias is not None and mask_bias is not None:
        return position_bias.detach().float() + mask_bias.float()
    bias = mask_bias if position_bias is None else position_bias
    if bias is None:
        return None
    return bias.detach() if bias.dtype in (torch.float32, dtype) else bias.detach().float()
