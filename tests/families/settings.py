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


def _rotate(*sections: int) -> dict[str, Any]:
    """Return settings of rotary positions with sections for time, height and width."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections)}}


def _spell(number: int) -> str:
    """Return a number in letters, A for 0."""
    return "".join(chr(ord("A") + int(digit)) for digit in f"{number:02d}")


CONFIGS: dict[str, dict[str, Any]] = {
    "cosmos3_edge_text": _rotate(2, 1, 1),
    "glm4v_text": _rotate(2, 1, 1),
    "glm4v_moe_text": {"rope_parameters": {**_rotate(1, 1, 0)["rope_parameters"], "partial_rotary_factor": 0.5}},
    "glm_image_text": _rotate(2, 1, 1),
    "glm_ocr_text": _rotate(2, 1, 1),
    "paddleocr_vl_text": _rotate(2, 1, 1),
    "ernie4_5_vl_moe_text": _rotate(1, 1, 2),
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "emu3": {
        "vocabulary_map": {"<image>": 100, "<|extra_200|>": 99, **{f"<|visual token {n:06d}|>": n for n in range(90)}}
    },
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1},
    "gemma4_text": {"global_head_dim": 16},
    "glm5_next_text": {"index_kpool": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 6},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llava_next": {"image_grid_pinpoints": [[32, 64], [64, 32]]},
    "llava_next_video": {"image_grid_pinpoints": [[32, 64], [64, 32]]},
    "llava_onevision": {"image_grid_pinpoints": [[32, 64], [64, 32]]},
    "mamba2": {"num_heads": 8},
    "mimi": {"upsample_groups": 32},
    "nemotron": {"num_key_value_heads": 2},
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
    "chameleon": {"vocabulary_map": {"<image>": 100, **{f"IMGIMG{_spell(n)}Z": n for n in range(99)}}},
    "chameleon_vqgan": {"num_embeddings": 99},
    "chameleon_vqvae": {"num_embeddings": 99},
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


# Codes of a sound are rows of the batch, one per codebook.
_SOUND_CODES = {"input_ids": lambda *_: _draw_codes(8, 14)}
_TILES = {
    "pixel_values": lambda *_: _draw(2, 1, 4, 3, 32, 32),
    "aspect_ratio_ids": lambda *_: torch.ones(2, 1, dtype=torch.int64),
    "aspect_ratio_mask": lambda *_: torch.ones(2, 1, 4, dtype=torch.int64),
}
_TEXT_AND_TILES = {
    **_TILES,
    "cross_attention_mask": lambda _, inputs, __: torch.ones(2, inputs["input_ids"].shape[1], 1, 4, dtype=torch.int64),
}

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
        f"{family}{head}": {
            "past_values": lambda config, *_: _draw(2, config.context_length, config.num_input_channels)
        }
        for family in ("PatchTST", "PatchTSMixer")
        for head in (
            "Model",
            "ForPretraining",
            "ForPrediction",
            "ForRegression",
            "ForClassification",
            "ForTimeSeriesClassification",
        )
    },
    **{
        f"{family}{head}": _SOUND_CODES
        for family in ("Musicgen", "MusicgenMelody")
        for head in ("Decoder", "Model", "ForCausalLM")
    },
    "MusicgenForConditionalGeneration": {"decoder_input_ids": lambda *_: _draw_codes(8, 7)},
    "MusicgenMelodyForConditionalGeneration": {"decoder_input_ids": lambda *_: _draw_codes(8, 7)},
    "KyutaiSpeechToTextModel": {"input_ids": lambda config, *_: _draw_codes(2, 14, config.num_codebooks + 1)},
    "MllamaVisionModel": _TILES,
    "MllamaModel": _TEXT_AND_TILES,
    "MllamaForConditionalGeneration": _TEXT_AND_TILES,
    "BltModel": {"use_cache": False},
    "BltForCausalLM": {"use_cache": False},
    "CsmBackboneModel": {"input_ids": lambda config, *_: _draw_codes(2, 14, config.num_codebooks)},
    "DiaModel": {"decoder_input_ids": lambda config, *_: _draw_codes(2, 7, config.decoder_config.num_channels)},
    "DiaForConditionalGeneration": {
        "decoder_input_ids": lambda config, *_: _draw_codes(2, 7, config.decoder_config.num_channels)
    },
    "DiaDecoder": {"input_ids": lambda config, *_: _draw_codes(2, 14, config.num_channels)},
    "Blip2QFormerModel": {
        "query_embeds": lambda *_: _draw(2, 8, 32),
        "encoder_hidden_states": lambda *_: _draw(2, 11, 32),
    },
    "TimesFmModel": {
        "past_values": lambda *_: _draw(2, 64),
        "past_values_padding": lambda *_: torch.zeros(2, 64, dtype=torch.int64),
        "freq": lambda *_: torch.zeros(2, 1, dtype=torch.int64),
    },
    "TimesFmModelForPrediction": {"past_values": lambda *_: [_draw(64), _draw(48)]},
    "TimesFm2_5Model": {
        "past_values": lambda *_: _draw(2, 64),
        "past_values_padding": lambda *_: torch.zeros(2, 64, dtype=torch.int64),
    },
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

        parts = [
            make_small(hf.CONFIG_MAPPING[name], cross)
            for name, cross in ((encoder, {}), (decoder, {"is_decoder": True, "add_cross_attention": True}))
        ]
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
