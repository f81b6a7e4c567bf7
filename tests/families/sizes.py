# ruff: noqa: E501  (the table of rules)
"""Small configurations: every field that is a size becomes a small one, the same in all parts of a model."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from tests.families import settings

HIDDEN = 32
HEADS = 4
HEAD_WIDTH = 8
INNER = 64
LAYERS = 2
VOCABULARY = 128
POSITIONS = 96
IMAGE = 32
PATCH = 8
WINDOW = 6

# Ids of special tokens: equal names mean the same token in all parts of a model.
TOKEN_IDS = {
    "pad": 0, "bos": 1, "eos": 2, "decoder_start": 1, "forced_bos": None, "forced_eos": None, "sep": 3, "cls": 4, "mask": 5,
    "unk": 6, "image": 100, "video": 101, "audio": 102, "vision_start": 103, "vision_end": 104, "speech": 102, "sound": 102,
    "media": 100, "image_start": 103, "image_end": 104, "boi": 103, "eoi": 104, "boa": 105, "eoa": 106, "audio_start": 105,
    "audio_end": 106, "video_start": 107, "video_end": 108, "audio_bos": 105, "audio_eos": 106, "user": 109, "blank": 0,
}  # fmt: skip
_TOKEN = re.compile(r"^(.*?)_?token_(?:id|index|idx)$|^(.*)_id$")

# The first rule that matches a field's name and accepts its default gives the value.
_RULES: list[tuple[re.Pattern[str], int, int]] = [
    # name, smallest default that is reduced, value
    (re.compile(pattern), least, value)
    for pattern, least, value in (
        (r"^(num_mtp_layers|num_nextn_predict_layers|num_kv_shared_layers|num_hash_layers)$", 1, 0),
        (r"^(max_window_layers|first_k_dense_replace|num_dense_layers|moe_layer_start_index|num_memory_layers)$", 1, 1),
        (r"^(sliding_window_pattern|global_attn_every_n_layers|full_attention_interval|full_attn_every_n_layers)$", 2, 2),
        (r"^(attn_layer_period|attention_layer_period|expert_layer_period|layer_switch|cross_attention_frequency)$", 2, 2),
        (r"^(attn_layer_offset|expert_layer_offset)$", 1, 1),
        (r"(experts?_per_tok(en)?|moe_topk|moe_k|top_k_experts|num_selected_experts|router_top_k|num_experts_per_token)$", 3, 2),
        (r"(num_.*experts|n_routed_experts|moe_num_experts|num_experts)$", 5, 4),
        (r"^n_group$", 3, 2),
        (r"^topk_group$", 2, 1),
        (r"(layers|_layer|blocks|depth)$|^n_layers?$|^layers_count$", 3, LAYERS),
        (r"^(index_topk|window_topk)$", 5, 4),
        (r"(key_value_heads|kv_heads|num_kv_heads|n_kv_heads|multi_query_group_num|num_key_heads)$", 3, 2),
        (r"(head_dim|dim_head|d_kv|^kv_channels|head_size|d_head|attention_key_dim|head_width)$", 9, HEAD_WIDTH),
        (r"^query_pre_attn_scalar$", 9, HEAD_WIDTH),
        (r"(heads?|n_heads?|num_heads)$", 5, HEADS),
        (r"(lora_rank|_rank)$", 17, 16),
        (r"^(partial_rotary|rotary_dim|rotary_emb_dim)$", 5, 4),
        (r"(sliding_window|sliding_window_size|attention_window|local_attention|attention_chunk_size|local_window_size)$", 7, WINDOW),
        (r"^(block_size|chunk_length|local_radius|attention_context_left|global_block_size)$", 9, 8),
        (r"vocab(ulary)?(_size)?$|^codebook_size$|vocab_size|^n_vocab$|num_embeddings$", VOCABULARY + 1, VOCABULARY),
        (r"(max_.*positions?|max_.*embeddings|n_positions|n_ctx|max_seq.*|max_.*_length|context_length|max_length)$", POSITIONS + 1, POSITIONS),
        (r"^(image_size|img_size|input_size|pretrain_image_size|crop_size)$", IMAGE + 1, IMAGE),
        (r"^(patch_size|patch_stride|encoder_patch_size)$", PATCH + 1, PATCH),
        (r"(spatial_merge_size)$", 3, 2),
        (r"^num_position_embeddings$", 65, 64),
        (r"^(mm_tokens_per_image|vision_soft_tokens_per_image)$", 5, 4),
        (r"(num_frames|video_length|max_frames)$", 5, 4),
        (r"(num_queries|query_tokens|num_query_tokens|num_latents|n_latents|num_object_queries|num_learnable_queries)$", 9, 8),
        (r"(num_mel_bins|n_mels|num_mels|mel_bins|feature_size|input_feat_size|input_feat_per_channel|feat_dim)$", 33, 32),
        (r"(intermediate|ffn|mlp|inner|d_ff|feedforward|feed_forward|ff_size|expert_dim|expert_size|moe_dim|fc_size).*", INNER + 1, INNER),
        (r"^(n_inner)$", 1, INNER),
        (r"(hidden|dim|width|d_model|n_embd|channels?|embed|latent|size|units|features|filters|planes|num_pos_feats)", HIDDEN + 1, HIDDEN),
    )
]  # fmt: skip
_KEPT = re.compile(
    r"^(max|min)_depth$|kernel|stride|dilation|dropout|sampling_rate|chunk_size_feed_forward|groups|num_labels|vocoder|temperature|type_vocab"
    r"|sample_rate|hop|n_fft|max_2d|coordinate|shape_size|pos_emb_|num_buckets|frame_rate|scale|theta|base$"
)


def make_small(config_class: type[Any], overrides: dict[str, Any] | None = None, *, sizes: bool = True) -> Any:
    """Return a small configuration.

    With `sizes` False only the number of layers and the vocabulary are reduced: the shapes of all layers then agree as
    the authors chose them.
    """
    if config_class.__name__ in settings.MAKE_CONFIG:
        return settings.MAKE_CONFIG[config_class.__name__](make_small)
    small = config_class(**_reduce(config_class, overrides or {}, sizes=sizes))
    _set_theta(small)
    return small


def _set_theta(config: Any) -> None:
    """Set the base of rotary positions where the configuration has none, as checkpoints do."""
    settings_of_rope = vars(config).get("rope_parameters")
    if (
        isinstance(settings_of_rope, dict)
        and "rope_theta" in settings_of_rope
        and settings_of_rope["rope_theta"] is None
    ):
        settings_of_rope["rope_theta"] = 1e4
    for name in getattr(config, "sub_configs", {}) or {}:
        if (part := getattr(config, name, None)) is not None:
            _set_theta(part)


def reduce_field(name: str, default: Any, *, sizes: bool = True) -> Any:
    """Return the small value of a field, its default where it is no size."""
    token = _TOKEN.match(name)
    if token:
        return _choose_token(token.group(1) or token.group(2) or "", default)
    if name == "head_dim" and default is None and sizes:
        return HEAD_WIDTH
    if isinstance(default, bool) or default is None or _KEPT.search(name):
        return default
    if isinstance(default, (list, tuple)) and default and all(type(value) is int for value in default):
        return _reduce_list(name, default, sizes=sizes)
    if isinstance(default, dict) and "mrope_section" in default and sizes:
        # Sections of the rotated half of a head: time, height, width.
        return {**default, "mrope_section": [HEAD_WIDTH // 2 - 2, 1, 1]}
    if type(default) is not int:
        return default
    for pattern, least, value in _RULES:
        if pattern.search(name):
            if not sizes and value not in {LAYERS, VOCABULARY, 0, 1}:
                return default
            return value if default >= least else default
    return default


def _choose_token(name: str, default: Any) -> Any:
    if name in TOKEN_IDS:
        return default if default is None and name not in {"pad", "image", "video", "audio"} else TOKEN_IDS[name]
    if type(default) is int and default >= VOCABULARY:
        return 110 + sum(map(ord, name)) % 18
    return default


def _reduce_list(name: str, values: Any, *, sizes: bool) -> Any:
    kind = type(values)
    if re.search(r"depths?$|num_blocks|stage_num_blocks|numb_of_layers|layers_per_stage|encoder_blocks", name):
        return kind(min(value, 2) for value in values)
    if not sizes:
        return values
    if re.search(r"image_size|img_size|input_size", name):
        return kind(IMAGE for _ in values)
    if re.search(r"patch_size$", name):
        return kind(min(value, PATCH) for value in values)
    if re.search(r"(layers|indexes|indices|layer_ids|layer)$", name):
        # Numbers of layers: those of the two that are left.
        return kind(sorted({value % LAYERS for value in values}))
    if re.search(r"conv_dim|tdnn_dim|decoder_in_channels|vision_features_channels", name):
        return kind(HIDDEN if value > HIDDEN else value for value in values)
    return values


def _list_defaults(config_class: type[Any]) -> dict[str, Any]:
    defaults = {}
    for field in dataclasses.fields(config_class):
        if field.default is not dataclasses.MISSING:
            defaults[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            defaults[field.name] = field.default_factory()
    return defaults


def _reduce(config_class: type[Any], overrides: dict[str, Any], *, sizes: bool) -> dict[str, Any]:
    specs = getattr(config_class, "sub_configs_defaults", {})
    settled = {**settings.CONFIGS.get(getattr(config_class, "model_type", ""), {})} if sizes else {}
    settled.update(settings.CONFIGS.get(config_class.__name__, {}))
    settled.update(overrides)
    arguments: dict[str, Any] = {}
    defaults = _list_defaults(config_class)
    for name, default in defaults.items():
        if name in specs or name in {"transformers_version", "architectures", "id2label", "label2id", "dtype"}:
            continue
        value = reduce_field(name, default, sizes=sizes)
        if value is not default and value != default:
            arguments[name] = value
    if (
        defaults.get("num_key_value_heads") == defaults.get("num_attention_heads")
        and "num_key_value_heads" in arguments
    ):
        # Latent attention has as many keys as queries.
        arguments["num_key_value_heads"] = arguments["num_attention_heads"]
    arguments.update(_choose_layers(config_class))
    for name, spec in specs.items():
        if name in settled and not isinstance(settled[name], dict):
            continue
        arguments[name] = _reduce_part(spec, settled.pop(name, {}), sizes=sizes)
    arguments.update(settled)
    return arguments


def _reduce_part(spec: Any, overrides: dict[str, Any], *, sizes: bool) -> Any:
    import transformers as hf

    if spec.optional and not overrides and spec.config_class is hf.AutoConfig and not spec.model_type:
        return None
    part_class = spec.config_class
    model_type = overrides.get("model_type", spec.model_type)
    if not issubclass(part_class, hf.PreTrainedConfig):
        part_class = spec.get_config_class(model_type)
    kept = {name: value for name, value in spec.init_kwargs.items() if reduce_field(name, value, sizes=sizes) == value}
    reduced = _reduce(part_class, {**kept, **{k: v for k, v in overrides.items() if k != "model_type"}}, sizes=sizes)
    for name, value in spec.init_kwargs.items():
        reduced.setdefault(name, reduce_field(name, value, sizes=sizes))
    return {"model_type": part_class.model_type, **reduced}


def _choose_layers(config_class: type[Any]) -> dict[str, Any]:
    """Return the lists with an entry per layer, reduced to the first layer of every kind, and the number of layers."""
    try:
        full = config_class()
    except Exception:  # noqa: BLE001  (many configurations cannot be built without arguments)
        return {}
    layers = vars(full).get("num_hidden_layers")
    if type(layers) is not int or layers <= LAYERS:
        return {}
    lists = {
        field.name: list(value)
        for field in dataclasses.fields(config_class)
        if isinstance(value := vars(full).get(field.name), (list, tuple)) and len(value) == layers
    }
    kinds = [value for value in lists.values() if all(isinstance(kind, str) for kind in value)]
    if not kinds:
        return {}
    first_of_kind: dict[tuple[str, ...], int] = {}
    for number, kind in enumerate(zip(*kinds, strict=True)):
        first_of_kind.setdefault(kind, number)
    chosen = sorted(first_of_kind.values())[:4]
    while len(chosen) < LAYERS:
        chosen.append(chosen[-1] + 1)
    return {"num_hidden_layers": len(chosen), **{name: [value[n] for n in chosen] for name, value in lists.items()}}
