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
from tests.support.planted_functions import PlantedFault, attention


def make_forward(**changes: Any) -> Callable[..., Any]:
    """Return an attention function for transformers with one argument of `attention` changed."""

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
        options = {"scaling": scaling, "softcap": softcap, "sinks": s_aux, "bias": position_bias, "hidden": -1e30}
        return attention(query, key, value, attention_mask, **{**options, **changes}).transpose(1, 2).contiguous(), None

    return forward


def make_dense_mask(**options: Any) -> torch.Tensor:
    """Return every mask as a boolean tensor."""
    return sdpa_mask(**{**options, "allow_is_causal_skip": False, "allow_is_bidirectional_skip": False})


def make_mask(**changes: Any) -> Callable[..., Any]:
    return lambda **options: make_dense_mask(**{**options, **changes})


def make_pattern_mask(change: Callable[[Any], dict[str, Any]]) -> Callable[..., torch.Tensor]:
    """Return a mask function with causal order, window, documents and padding, one of them changed."""

    def mask(**options: Any) -> torch.Tensor:
        pattern = read_pattern(options["mask_function"])
        assert pattern is not None
        pattern = replace(pattern, **change(pattern))

        def function(item: Any, _head: Any, query: Any, key: Any) -> Any:
            visible = key <= query
            if pattern.left is not None:
                visible = visible & (key >= query - pattern.left)
            if pattern.documents is not None:
                visible = visible & (pattern.documents[item, query] == pattern.documents[item, key])
            return visible

        return make_dense_mask(**{**options, "mask_function": function})

    return mask


make_mask_without_window = make_pattern_mask(lambda _: {"left": None})
make_mask_with_larger_window = make_pattern_mask(lambda pattern: {"left": pattern.left + 1})
make_mask_across_documents = make_pattern_mask(lambda _: {"documents": None})


def make_mask_one_ahead(**options: Any) -> torch.Tensor:
    return make_dense_mask(**{**options, "mask_function": lambda _batch, _head, query, key: key <= query + 1})


def check_registered(
    family: str, forward: Callable[..., Any], mask: Callable[..., Any] | None = make_dense_mask, **options: Any
) -> Diagnosis:
    """Diagnose a model whose attention is the given function."""
    name = f"planted_{len(AttentionInterface._global_mapping)}"
    AttentionInterface.register(name, forward)
    if mask is not None:
        AttentionMaskInterface.register(name, mask)
    model = models.make_model(family)
    model.set_attn_implementation(name)
    try:
        return check_model(model, **options)
    finally:
        AttentionInterface._global_mapping.pop(name)
        AttentionMaskInterface._global_mapping.pop(name, None)


def forward_causal_only(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """Ignore the mask, but be causal where the layer is."""
    queries, keys = query.shape[2], key.shape[2]
    visible = torch.ones(queries, keys).tril(keys - queries).bool() if getattr(module, "is_causal", True) else None
    return make_forward()(module, query, key, value, visible, **options)


def forward_without_mask(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    return make_forward()(module, query, key, value, None, **options)


def forward_top_left(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """Build the causal mask from the sizes, aligned at the first key, as soon as there are several queries."""
    queries, keys = query.shape[2], key.shape[2]
    if queries > 1:
        attention_mask = attention_mask & attention_mask.new_ones(queries, keys).tril()
    return make_forward()(module, query, key, value, attention_mask, **options)


def forward_ignoring_strides(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    """Read the query as if it were contiguous."""
    _, heads, tokens, size = query.shape
    misread = query.as_strided(query.shape, (heads * tokens * size, tokens * size, size, 1))
    return make_forward()(module, misread, key, value, attention_mask, **options)


def forward_viewing_output(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    output, _ = make_forward()(module, query, key, value, attention_mask, **options)
    batch, tokens, heads, size = output.shape
    return output.transpose(1, 2).reshape(batch, tokens, heads, size), None


def forward_exchanging_key_and_value(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
) -> Any:
    return make_forward()(module, query, value, key, attention_mask, **options)


def forward_with_dropout(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
    output, _ = make_forward()(module, query, key, value, attention_mask, **options)
    return torch.nn.functional.dropout(output, 0.1, training=True), None


def forward_with_infinite_mask(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
) -> Any:
    return make_forward(hidden=-torch.inf)(module, query, key, value, attention_mask, **options)


def check_changed(family: str, change: Callable[[Any], None], **options: Any) -> Diagnosis:
    model = models.make_model(family)
    with torch.no_grad():
        change(model)
    return check_model(model, **options)


def restart_positions(model: Any) -> None:
    """Rotate a token decoded alone as if its position were 0."""
    rotary = model.model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda x, position_ids: original(
        x, position_ids * 0 if position_ids.shape[1] == 1 else position_ids
    )


def shift_positions(model: Any) -> None:
    rotary = model.model.rotary_emb
    original = rotary.forward
    rotary.forward = lambda x, position_ids: original(
        x, position_ids + 1 if position_ids.shape[1] == 1 else position_ids
    )


def shift_cached_values(model: Any) -> None:
    """Shift the cached values by one token at every decoding step."""

    def before(_module: Any, _arguments: Any, options: dict[str, Any]) -> None:
        cache = options.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            cache.layers[0].values = cache.layers[0].values.roll(1, dims=2)

    model.model.register_forward_pre_hook(before, with_kwargs=True)


def mix_tokens(model: Any) -> None:
    """Add the mean of all tokens to every token."""
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _a, output: output + output.mean(1, keepdim=True))


def add_first_token(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _a, output: output + output[:, :1])


def remove_scale(model: Any) -> None:
    model.model.layers[1].self_attn.scaling = 1.0


def switch_off_causal(model: Any) -> None:
    for block in model.transformer.h:
        block.attn.is_causal = False


def zero_keys(model: Any) -> None:
    for block in model.transformer.h:
        block.attn.c_attn.weight[:, 32:64] = 0


def zero_queries(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.zero_()


def enlarge_queries(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(3000)


def zero_values_of_one_head(model: Any) -> None:
    model.model.layers[1].self_attn.v_proj.weight[:8] = 0


def equalise_embeddings(model: Any) -> None:
    embeddings = model.model.embed_tokens.weight
    embeddings.copy_(embeddings[:1].expand_as(embeddings))


def start_training(model: Any) -> None:
    model.train()


def make_left_padded() -> dict[str, Any]:
    ids, real = models.draw_padded_tokens((models.TOKENS - 7, models.TOKENS), "left")
    return {"input_ids": ids, "attention_mask": real}


def make_packed_with_cache() -> dict[str, Any]:
    ids, _ = models.draw_padded_tokens((models.TOKENS,), "left")
    positions = torch.cat([torch.arange(8), torch.arange(models.TOKENS - 8)])[None]
    return {"input_ids": ids, "position_ids": positions, "use_cache": True}


def make_fully_masked_query() -> dict[str, Any]:
    ids, _ = models.draw_padded_tokens((models.TOKENS,), "left")
    visible = torch.ones(1, 1, models.TOKENS, models.TOKENS).tril().bool()
    visible[..., 5, :] = False
    return {"input_ids": ids, "attention_mask": visible}


def make_fully_masked_query_added() -> dict[str, Any]:
    inputs = make_fully_masked_query()
    visible = inputs["attention_mask"]
    added = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
    return {**inputs, "attention_mask": added}


def check_eager_with_fully_masked_query() -> Diagnosis:
    """Diagnose transformers' eager attention with its own kind of mask: the lowest number, added."""
    model = models.make_model("llama")
    model.set_attn_implementation("eager")
    return check_model(model, inputs=make_fully_masked_query_added())


MODEL_FAULTS = (
    PlantedFault(
        "attention function ignores every mask",
        "Llama",
        "causal-mask-lost",
        lambda: check_registered("llama", forward_without_mask),
    ),
    PlantedFault(
        "attention function ignores masks but is causal",
        "Llama",
        "mask-lost",
        lambda: check_registered("llama", forward_causal_only),
    ),
    PlantedFault(
        "no mask function registered",
        "Mistral",
        "mask-lost",
        lambda: check_registered("mistral", forward_causal_only, None),
    ),
    PlantedFault(
        "mask function forgets the padding",
        "BERT",
        "padding-visible",
        lambda: check_registered("bert", make_forward(), make_mask(attention_mask=None)),
    ),
    PlantedFault(
        "mask function forgets the window",
        "Mistral",
        "window-dropped",
        lambda: check_registered("mistral", make_forward(), make_mask_without_window),
    ),
    PlantedFault(
        "window one key too large",
        "Mistral",
        "window-off-by-one",
        lambda: check_registered("mistral", make_forward(), make_mask_with_larger_window),
    ),
    PlantedFault(
        "mask function forgets documents",
        "Llama",
        "document-leak",
        lambda: check_registered("llama", make_forward(), make_mask_across_documents),
    ),
    PlantedFault(
        "causal mask one key too far",
        "Llama",
        "causal-off-by-one",
        lambda: check_registered("llama", make_forward(), make_mask_one_ahead),
    ),
    PlantedFault(
        "causal mask aligned at the first key",
        "Llama",
        "causal-top-left",
        lambda: check_registered("llama", forward_top_left),
    ),
    PlantedFault(
        "query heads grouped by tiling",
        "Llama",
        "heads-grouped-wrong",
        lambda: check_registered("llama", make_forward(grouped="tiled")),
    ),
    PlantedFault(
        "scale omitted",
        "Phi3",
        "scale-missing",
        lambda: check_registered("phi3", make_forward(scale=lambda _s, _q: 1.0)),
    ),
    PlantedFault(
        "scale applied twice",
        "Qwen2",
        "scale-twice",
        lambda: check_registered("qwen2", make_forward(scale=lambda s, _: s * s)),
    ),
    PlantedFault(
        "1 / head_dim instead of T5's scale of 1",
        "T5",
        "scale-not-rooted",
        lambda: check_registered("t5", make_forward(scale=lambda _, q: 1 / q.shape[-1])),
    ),
    PlantedFault(
        "scale from the model's width",
        "GPT-2",
        "scale-wrong-size",
        lambda: check_registered("gpt2", make_forward(scale=lambda _, q: (q.shape[1] * q.shape[3]) ** -0.5)),
    ),
    PlantedFault(
        "multiplied instead of divided",
        "GPT-2",
        "scale-inverted",
        lambda: check_registered("gpt2", make_forward(scale=lambda s, _: 1 / s)),
    ),
    PlantedFault(
        "softcap dropped", "Gemma2", "softcap-dropped", lambda: check_registered("gemma2", make_forward(softcap=None))
    ),
    PlantedFault(
        "softcap after the mask",
        "Gemma2",
        "softcap-after-mask",
        lambda: check_registered("gemma2", make_forward(softcap_place="after the mask")),
    ),
    PlantedFault(
        "sinks dropped", "gpt-oss", "sinks-dropped", lambda: check_registered("gpt_oss", make_forward(sinks=None))
    ),
    PlantedFault(
        "position bias dropped", "T5", "bias-dropped", lambda: check_registered("t5", make_forward(bias=None))
    ),
    PlantedFault(
        "softmax over the queries",
        "BERT",
        "softmax-wrong-axis",
        lambda: check_registered("bert", make_forward(axis=-2)),
    ),
    PlantedFault(
        "keys and values exchanged",
        "GPT-2",
        "key-value-swapped",
        lambda: check_registered("gpt2", forward_exchanging_key_and_value),
    ),
    PlantedFault(
        "output viewed, not transposed", "ViT", "axes-misread", lambda: check_registered("vit", forward_viewing_output)
    ),
    PlantedFault(
        "query's strides ignored",
        "Llama",
        "strides-misread",
        lambda: check_registered("llama", forward_ignoring_strides),
    ),
    PlantedFault(
        "dropout inside attention, always on",
        "Marian",
        "not-deterministic",
        lambda: check_registered("marian", forward_with_dropout),
    ),
    PlantedFault(
        "evaluated in training mode", "GPT-2", "dropout-active", lambda: check_changed("gpt2", start_training)
    ),
    PlantedFault(
        "4D mask that hides every key of a query, -inf",
        "Llama",
        "dead-row-nan",
        lambda: check_registered("llama", forward_with_infinite_mask, inputs=make_fully_masked_query()),
    ),
    PlantedFault(
        "4D mask that hides every key of a query, lowest number (eager)",
        "Llama",
        "dead-row-uniform",
        check_eager_with_fully_masked_query,
    ),
    PlantedFault(
        "scaling of one layer set to 1", "Llama", "setting-changed", lambda: check_changed("llama", remove_scale)
    ),
    PlantedFault(
        "is_causal switched off", "GPT-2", "setting-changed", lambda: check_changed("gpt2", switch_off_causal)
    ),
    PlantedFault(
        "decoded tokens rotated at position 0",
        "Llama",
        "position-offset",
        lambda: check_changed("llama", restart_positions),
    ),
    PlantedFault(
        "decoded tokens rotated one position too far",
        "Qwen2",
        "position-offset",
        lambda: check_changed("qwen2", shift_positions),
    ),
    PlantedFault(
        "values in the cache shifted",
        "Llama",
        "prefill-decode-disagree",
        lambda: check_changed("llama", shift_cached_values),
    ),
    PlantedFault("mean over all tokens added", "Llama", "future-leak", lambda: check_changed("llama", mix_tokens)),
    PlantedFault(
        "first token added everywhere", "Mistral", "window-leak", lambda: check_changed("mistral", add_first_token)
    ),
    PlantedFault(
        "left padding without positions",
        "GPT-2",
        "positions-not-shifted",
        lambda: check_model(models.make_model("gpt2"), inputs=make_left_padded()),
    ),
    PlantedFault(
        "packed documents with a cache",
        "Llama",
        "document-leak",
        lambda: check_model(models.make_model("llama"), inputs=make_packed_with_cache()),
    ),
    PlantedFault("key projection all zero", "GPT-2", "keys-identical", lambda: check_changed("gpt2", zero_keys)),
    PlantedFault("query projection all zero", "Llama", "weights-uniform", lambda: check_changed("llama", zero_queries)),
    PlantedFault(
        "queries 3000 times too large", "Llama", "softmax-saturated", lambda: check_changed("llama", enlarge_queries)
    ),
    PlantedFault(
        "values of one head all zero", "Llama", "head-dead", lambda: check_changed("llama", zero_values_of_one_head)
    ),
    PlantedFault(
        "all tokens have the same embedding",
        "Llama",
        "rank-collapse",
        lambda: check_changed("llama", equalise_embeddings),
    ),
)
