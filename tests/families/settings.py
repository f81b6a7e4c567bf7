"""What the general recipe cannot know: settings of single configurations and classes.

Sizes follow tests/families/sizes.py; keys of CONFIGS are model types or names of configuration classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

OMIT = object()
"""Marks an input that must not be passed."""

_SERIES_CONFIG = {
    "prediction_length": 7,
    "context_length": 14,
    "lags_sequence": [1, 2],
    "num_time_features": 2,
    "num_parallel_samples": 2,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "informer": _SERIES_CONFIG,
    "autoformer": {**_SERIES_CONFIG, "moving_average": 5},
    "time_series_transformer": _SERIES_CONFIG,
    "bridgetower": {"hidden_size": 64, "contrastive_hidden_size": 32},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    "deepseek_ocr2_text": {"num_experts_per_tok": 2, "n_group": 2, "topk_group": 1},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8}},
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "depth_pro": {"patch_size": 16},
    "chameleon": {"vocabulary_map": {"<image>": 100, **{f"IMGIMG{chr(65 + n // 26)}{chr(65 + n % 26)}Z": n for n in range(128)}}},
    "bridgetower_text_model": {"hidden_size": 64},
    "bridgetower_vision_model": {"hidden_size": 64},
    "bamba": {"attn_layer_indices": [1]},
}

# Settings that single classes need, beside those of their configuration.
CLASS_CONFIGS: dict[str, dict[str, Any]] = {
    "Blip2TextModelWithProjection": {"qformer_config": {"use_qformer_text_input": True}},
    "Blip2VisionModelWithProjection": {"qformer_config": {"use_qformer_text_input": True}},
    "Blip2ForImageTextRetrieval": {"qformer_config": {"use_qformer_text_input": True}},
    "BeitForSemanticSegmentation": {"num_hidden_layers": 4, "out_indices": [1, 2, 3, 4]},
}

# Further configurations of a class, beside the default one: attention that a setting chooses.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "InformerModel": [{"attention_type": "full", "distil": False}],
    "LongT5EncoderModel": [{"encoder_attention_type": "transient-global"}],
    "LongT5Model": [{"encoder_attention_type": "transient-global"}],
    "BigBirdModel": [{"attention_type": "original_full"}],
    "BigBirdForCausalLM": [{"attention_type": "original_full", "is_decoder": True}],
    "BigBirdPegasusModel": [{"attention_type": "original_full"}],
    "BigBirdPegasusForConditionalGeneration": [{"attention_type": "original_full"}],
}


def _draw(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def _draw_codes(*shape: int) -> Any:
    return torch.randint(10, 90, shape, generator=torch.Generator().manual_seed(11))


_SERIES = {
    "past_values": lambda *_: _draw(2, 16),
    "past_time_features": lambda *_: _draw(2, 16, 2),
    "past_observed_mask": lambda *_: torch.ones(2, 16),
    "future_values": lambda *_: _draw(2, 7),
    "future_time_features": lambda *_: _draw(2, 7, 2),
}

# Inputs of a class: a value, or a function of its configuration, the inputs so far and the side of the padding.
INPUTS: dict[str, dict[str, Any]] = {
    **{
        f"{family}{head}": _SERIES
        for family in ("Informer", "Autoformer", "TimeSeriesTransformer")
        for head in ("Model", "ForPrediction")
    },
    **{
        f"{family}{head}": {"past_values": lambda config, *_: _draw(2, config.context_length, config.num_input_channels)}
        for family in ("PatchTST", "PatchTSMixer")
        for head in ("Model", "ForPretraining", "ForPrediction", "ForRegression", "ForClassification", "ForTimeSeriesClassification")
    },
    "BltModel": {"use_cache": False},
    "BltForCausalLM": {"use_cache": False},
    "CsmBackboneModel": {"input_ids": lambda config, *_: _draw_codes(2, 14, config.num_codebooks)},
    "DiaModel": {"decoder_input_ids": lambda config, *_: _draw_codes(2, 7, config.decoder_config.num_channels)},
    "DiaForConditionalGeneration": {"decoder_input_ids": lambda config, *_: _draw_codes(2, 7, config.decoder_config.num_channels)},
    "DiaDecoder": {"input_ids": lambda config, *_: _draw_codes(2, 14, config.num_channels)},
    "Blip2QFormerModel": {"query_embeds": lambda *_: _draw(2, 8, 32), "encoder_hidden_states": lambda *_: _draw(2, 11, 32)},
    "TimesFmModel": {
        "past_values": lambda *_: _draw(2, 64),
        "past_values_padding": lambda *_: torch.zeros(2, 64, dtype=torch.int64),
        "freq": lambda *_: torch.zeros(2, 1, dtype=torch.int64),
    },
    "TimesFmModelForPrediction": {"past_values": lambda *_: [_draw(64), _draw(48)]},
    "TimesFm2_5Model": {"past_values": lambda *_: _draw(2, 64), "past_values_padding": lambda *_: torch.zeros(2, 64, dtype=torch.int64)},
    "TimesFm2_5ModelForPrediction": {"past_values": lambda *_: [_draw(64), _draw(48)]},
}

# Optional pictures and sounds that a class does not need.
LEFT_OUT: dict[str, tuple[str, ...]] = {}

# Classes that cannot be built or run here, with the reason.
NOT_BUILT: dict[str, str] = {}


def _combine(encoder: str, decoder: str) -> Callable[[Any], Any]:
    """Return a function that makes the configuration of an encoder and a decoder, given the recipe for each."""

    def make(make_small: Any) -> Any:
        import transformers as hf

        parts = [make_small(hf.CONFIG_MAPPING[name], cross) for name, cross in (
            (encoder, {}), (decoder, {"is_decoder": True, "add_cross_attention": True})
        )]
        kinds = {"vit": hf.VisionEncoderDecoderConfig, "wav2vec2": hf.SpeechEncoderDecoderConfig}
        config = kinds.get(encoder, hf.EncoderDecoderConfig).from_encoder_decoder_configs(*parts)
        config.decoder_start_token_id, config.pad_token_id = 1, 0
        return config

    return make


def _combine_towers(make_small: Any) -> Any:
    import transformers as hf

    parts = [make_small(hf.CONFIG_MAPPING[name]) for name in ("vit", "bert")]
    return hf.VisionTextDualEncoderConfig.from_vision_text_configs(*parts, projection_dim=32)


# Configurations that consist of others, of any kind.
MAKE_CONFIG: dict[str, Callable[[Any], Any]] = {
    "EncoderDecoderConfig": _combine("bert", "bert"),
    "VisionEncoderDecoderConfig": _combine("vit", "bert"),
    "SpeechEncoderDecoderConfig": _combine("wav2vec2", "bert"),
    "VisionTextDualEncoderConfig": _combine_towers,
}
