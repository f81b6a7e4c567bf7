"""Faults planted in tiny real models: in their attention function, their mask function, a layer, or their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from keywise.diagnosis import Diagnosis, check_model
from keywise.hf.masks import read_pattern
from tests.support import models
from tests.support.planted_functions import Plant, attention


def forward_with(**wrong: Any) -> Callable[..., Any]:
    """Make an attention function for transformers out of `attention`, with one thing wrong."""

    def forward(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        given = {"scaling": scaling, "softcap": softcap, "sinks": s_aux, "bias": position_bias, "hidden": -1e30}
        return attention(query, key, value, attention_mask, **{**given, **wrong}).transpose(1, 2).contiguous(), None

    return forward


def dense_mask(**given: Any) -> torch.Tensor:
    """Make every mask a boolean tensor."""
    return sdpa_mask(**{**given, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def mask_with(**wrong: Any) -> Callable[..., Any]:
    return lambda **given: dense_mask(**{**given, **wrong})


def pattern_with(change: Callable[[Any], dict[str, Any]]) -> Callable[..., torch.Tensor]:
    """Make a mask function that knows causal order, window, documents and padding, with one thing changed."""

    def mask(**given: Any) -> torch.Tensor:
        pattern = read_pattern(given["mask_function"])
        assert pattern is not None
        pattern = replace(pattern, **change(pattern))

        def function(item: Any, _head: Any, query: Any, key: Any) -> Any:
            seen = key <= query
            if pattern.left is not None:
                seen = seen & (key >= query - pattern.left)
            if pattern.documents is not None:
                seen = seen & (pattern.documents[item, query] == pattern.documents[item, key])
            return seen

        return dense_mask(**{**given, "mask_function": function})

    return mask


windowless = pattern_with(lambda _: {"left": None})
one_more = pattern_with(lambda pattern: {"left": pattern.left + 1})
across_documents = pattern_with(lambda _: {"documents": None})


def one_ahead(**given: Any) -> torch.Tensor:
    return dense_mask(**{**given, "mask_function": lambda _batch, _head, query, key: key <= query + 1})


def registered(
    family: str, forward: Callable[..., Any], mask: Callable[..., Any] | None = dense_mask, **options: Any
) -> Diagnosis:
    """Check a family's model that attends by a function of one's own."""
    name = f"planted_{len(AttentionInterface._global_mapping)}"
    AttentionInterface.register(name, forward)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    model = models.make(family)
    model.set_attn_implementation(name)
    try:
        return check_model(model, **options)
    finally:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name, None)


def unmasked(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    """Ignore the mask; be causal where the layer is."""
    queries, keys = query.shape[2], key.shape[2]
    seen = torch.ones(queries, keys).tril(keys - queries).bool() if getattr(module, "is_causal", True) else None
    return forward_with()(module, query, key, value, seen, **given)


def ignoring(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    return forward_with()(module, query, key, value, None, **given)


def top_left(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    """Build the causal mask from the sizes, aligned at the first key, as soon as there are several queries."""
    queries, keys = query.shape[2], key.shape[2]
    if queries > 1:
        attention_mask = attention_mask & attention_mask.new_ones(queries, keys).tril()
    return forward_with()(module, query, key, value, attention_mask, **given)


def as_stored(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    """Take the query's memory for contiguous."""
    _, heads, tokens, size = query.shape
    misread = query.as_strided(query.shape, (heads * tokens * size, tokens * size, size, 1))
    return forward_with()(module, misread, key, value, attention_mask, **given)


def viewed_output(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    right, _ = forward_with()(module, query, key, value, attention_mask, **given)
    batch, tokens, heads, size = right.shape
    return right.transpose(1, 2).reshape(batch, tokens, heads, size), None


def exchanged(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    return forward_with()(module, query, value, key, attention_mask, **given)


def with_dropout(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    right, _ = forward_with()(module, query, key, value, attention_mask, **given)
    return torch.nn.functional.dropout(right, 0.1, training=True), None


def naive(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **given: Any) -> Any:
    return forward_with(hidden=-torch.inf)(module, query, key, value, attention_mask, **given)


def changed(family: str, change: Callable[[Any], None], **options: Any) -> Diagnosis:
    model = models.make(family)
    with torch.no_grad():
        change(model)
    return check_model(model, **options)


def starts_anew(model: Any) -> None:
    """Rotate a token decoded alone as if it stood at position 0."""
    rotary = model.model.rotary_emb
    right = rotary.forward
    rotary.forward = lambda x, position_ids: right(x, position_ids * 0 if position_ids.shape[1] == 1 else position_ids)


def one_too_far(model: Any) -> None:
    rotary = model.model.rotary_emb
    right = rotary.forward
    rotary.forward = lambda x, position_ids: right(x, position_ids + 1 if position_ids.shape[1] == 1 else position_ids)


def stale_cache(model: Any) -> None:
    """Return every decoding step the values of the token before."""

    def before(_module: Any, _arguments: Any, given: dict[str, Any]) -> None:
        cache = given.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            cache.layers[0].values = cache.layers[0].values.roll(1, dims=2)

    model.model.register_forward_pre_hook(before, with_kwargs=True)


def mixing(model: Any) -> None:
    """Let every token see the mean of all."""
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _a, output: output + output.mean(1, keepdim=True))


def first_token_everywhere(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _a, output: output + output[:, :1])


def unscaled(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 1.0


def uncausal(model: Any) -> None:
    for block in model.transformer.h:
        block.attn.is_causal = False


def keys_not_loaded(model: Any) -> None:
    for block in model.transformer.h:
        block.attn.c_attn.weight[:, 32:64] = 0


def queries_not_loaded(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.zero_()


def enormous_queries(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(3000)


def dead_values(model: Any) -> None:
    model.model.layers[1].self_attn.v_proj.weight[:8] = 0


def same_embeddings(model: Any) -> None:
    embeddings = model.model.embed_tokens.weight
    embeddings.copy_(embeddings[:1].expand_as(embeddings))


def training(model: Any) -> None:
    model.train()


def left_padded() -> dict[str, Any]:
    ids, real = models.padded_tokens((models.TOKENS - 7, models.TOKENS), "left")
    return {"input_ids": ids, "attention_mask": real}


def packed_with_cache() -> dict[str, Any]:
    ids, _ = models.padded_tokens((models.TOKENS,), "left")
    positions = torch.cat([torch.arange(8), torch.arange(models.TOKENS - 8)])[None]
    return {"input_ids": ids, "position_ids": positions, "use_cache": True}


def with_dead_row() -> dict[str, Any]:
    ids, _ = models.padded_tokens((models.TOKENS,), "left")
    seen = torch.ones(1, 1, models.TOKENS, models.TOKENS).tril().bool()
    seen[..., 5, :] = False
    return {"input_ids": ids, "attention_mask": seen}


def with_dead_row_added() -> dict[str, Any]:
    given = with_dead_row()
    seen = given["attention_mask"]
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    return {**given, "attention_mask": added}


def eager_with_dead_row() -> Diagnosis:
    """Run transformers' own eager attention with its own kind of mask: the lowest number, added."""
    model = models.make("llama")
    model.set_attn_implementation("eager")
    return check_model(model, inputs=with_dead_row_added())


MODELS = (
    Plant("attention function ignores every mask", "Llama", "causal-mask-lost", lambda: registered("llama", ignoring)),
    Plant(
        "attention function ignores masks but is causal",
        "Llama",
        "mask-lost",
        lambda: registered("llama", unmasked),
    ),
    Plant("no mask function registered", "Mistral", "mask-lost", lambda: registered("mistral", unmasked, None)),
    Plant(
        "mask function forgets the padding",
        "BERT",
        "padding-visible",
        lambda: registered("bert", forward_with(), mask_with(attention_mask=None)),
    ),
    Plant(
        "mask function forgets the window",
        "Mistral",
        "window-dropped",
        lambda: registered("mistral", forward_with(), windowless),
    ),
    Plant(
        "window one key too large",
        "Mistral",
        "window-off-by-one",
        lambda: registered("mistral", forward_with(), one_more),
    ),
    Plant(
        "mask function forgets documents",
        "Llama",
        "document-leak",
        lambda: registered("llama", forward_with(), across_documents),
    ),
    Plant(
        "causal mask one key too far",
        "Llama",
        "causal-off-by-one",
        lambda: registered("llama", forward_with(), one_ahead),
    ),
    Plant("causal mask aligned at the first key", "Llama", "causal-top-left", lambda: registered("llama", top_left)),
    Plant(
        "query heads grouped by tiling",
        "Llama",
        "heads-grouped-wrong",
        lambda: registered("llama", forward_with(grouped="tiled")),
    ),
    Plant(
        "scale left out", "Phi3", "scale-missing", lambda: registered("phi3", forward_with(scale=lambda _s, _q: 1.0))
    ),
    Plant(
        "scale applied twice",
        "Qwen2",
        "scale-twice",
        lambda: registered("qwen2", forward_with(scale=lambda s, _: s * s)),
    ),
    Plant(
        "1 / head_dim for T5's scale of 1",
        "T5",
        "scale-not-rooted",
        lambda: registered("t5", forward_with(scale=lambda _, q: 1 / q.shape[-1])),
    ),
    Plant(
        "scale from the model's width",
        "GPT-2",
        "scale-wrong-size",
        lambda: registered("gpt2", forward_with(scale=lambda _, q: (q.shape[1] * q.shape[3]) ** -0.5)),
    ),
    Plant(
        "multiplied for divided",
        "GPT-2",
        "scale-inverted",
        lambda: registered("gpt2", forward_with(scale=lambda s, _: 1 / s)),
    ),
    Plant("softcap dropped", "Gemma2", "softcap-dropped", lambda: registered("gemma2", forward_with(softcap=None))),
    Plant(
        "softcap after the mask",
        "Gemma2",
        "softcap-after-mask",
        lambda: registered("gemma2", forward_with(capped="after the mask")),
    ),
    Plant("sinks dropped", "gpt-oss", "sinks-dropped", lambda: registered("gpt_oss", forward_with(sinks=None))),
    Plant("position bias dropped", "T5", "bias-dropped", lambda: registered("t5", forward_with(bias=None))),
    Plant("softmax over the queries", "BERT", "softmax-wrong-axis", lambda: registered("bert", forward_with(axis=-2))),
    Plant("keys and values exchanged", "GPT-2", "key-value-swapped", lambda: registered("gpt2", exchanged)),
    Plant("output viewed, not transposed", "ViT", "axes-misread", lambda: registered("vit", viewed_output)),
    Plant("query's strides ignored", "Llama", "strides-misread", lambda: registered("llama", as_stored)),
    Plant(
        "dropout inside attention, always on", "Marian", "not-deterministic", lambda: registered("marian", with_dropout)
    ),
    Plant("evaluated in training mode", "GPT-2", "dropout-active", lambda: changed("gpt2", training)),
    Plant(
        "4D mask with an empty row, -inf",
        "Llama",
        "dead-row-nan",
        lambda: registered("llama", naive, inputs=with_dead_row()),
    ),
    Plant(
        "4D mask with an empty row, lowest number (eager)",
        "Llama",
        "dead-row-uniform",
        eager_with_dead_row,
    ),
    Plant("scaling of one layer set to 1", "Llama", "setting-changed", lambda: changed("llama", unscaled)),
    Plant("is_causal switched off", "GPT-2", "setting-changed", lambda: changed("gpt2", uncausal)),
    Plant("decoded tokens rotated at position 0", "Llama", "position-offset", lambda: changed("llama", starts_anew)),
    Plant("decoded tokens rotated one too far", "Qwen2", "position-offset", lambda: changed("qwen2", one_too_far)),
    Plant("values in the cache shifted", "Llama", "prefill-decode-disagree", lambda: changed("llama", stale_cache)),
    Plant("mean over all tokens added", "Llama", "future-leak", lambda: changed("llama", mixing)),
    Plant("first token added everywhere", "Mistral", "window-leak", lambda: changed("mistral", first_token_everywhere)),
    Plant(
        "left padding without positions",
        "GPT-2",
        "positions-not-shifted",
        lambda: check_model(models.make("gpt2"), inputs=left_padded()),
    ),
    Plant(
        "packed documents with a cache",
        "Llama",
        "document-leak",
        lambda: check_model(models.make("llama"), inputs=packed_with_cache()),
    ),
    Plant("key projection all zero", "GPT-2", "keys-identical", lambda: changed("gpt2", keys_not_loaded)),
    Plant("query projection all zero", "Llama", "weights-uniform", lambda: changed("llama", queries_not_loaded)),
    Plant("queries 3000 times too large", "Llama", "softmax-saturated", lambda: changed("llama", enormous_queries)),
    Plant("values of one head all zero", "Llama", "head-dead", lambda: changed("llama", dead_values)),
    Plant("every token has one embedding", "Llama", "rank-collapse", lambda: changed("llama", same_embeddings)),
)
