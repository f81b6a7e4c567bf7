"""Tiny models of the families that are written for eager attention alone, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import transformers as hf
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerTextModel

from keywise.hf import supported
from keywise.hf.compatibility import list_model_types
from tests.support.models import ENCODER_DECODER, TEXT, TOKENS, WINDOW, draw_padded_tokens

NARROW = {**TEXT, "num_key_value_heads": 2, "sliding_window": WINDOW}
CAPPED = {"attn_logit_softcapping": 4.0, "query_pre_attn_scalar": 8, "head_dim": 8}
LAYERS = {"layer_types": ["sliding_attention", "full_attention"]}
SERIES = {
    "prediction_length": 6,
    "context_length": 12,
    "lags_sequence": [1, 2],
    "d_model": 16,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
IMAGE_TOWER = {**TOWER, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4}


def t5gemma() -> Any:
    part = {key: value for key, value in {**NARROW, **CAPPED, **LAYERS}.items() if key != "eos_token_id"}
    config = hf.T5GemmaConfig(encoder=dict(part), decoder=dict(part), vocab_size=TEXT["vocab_size"])
    return hf.T5GemmaModel(config)


def speech_to_text() -> Any:
    sizes = {"input_feat_per_channel": 8, "conv_channels": 16, "max_source_positions": 64, "max_target_positions": 64}
    return hf.Speech2TextModel(hf.Speech2TextConfig(**ENCODER_DECODER, **sizes))


def switch_transformers() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4}
    experts = {"num_experts": 2, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1}
    return hf.SwitchTransformersModel(
        hf.SwitchTransformersConfig(**sizes, **experts, vocab_size=TEXT["vocab_size"], relative_attention_num_buckets=8)
    )


def nllb_moe() -> Any:
    experts = {"num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 64}
    return hf.NllbMoeModel(hf.NllbMoeConfig(**ENCODER_DECODER, **experts, max_position_embeddings=64))


# family: builder, kind of input
EAGER_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "align": (lambda: hf.AlignTextModel(hf.AlignTextConfig(**TEXT)), "text"),
    "clap": (lambda: hf.ClapTextModel(hf.ClapTextConfig(**TEXT)), "text"),
    "bridgetower": (lambda: BridgeTowerTextModel(hf.BridgeTowerTextConfig(**TEXT, is_decoder=True)), "text"),
    "flint": (
        lambda: hf.FlintModel(
            hf.FlintConfig(
                **NARROW,
                **LAYERS,
                head_dim=8,
                num_experts=4,
                num_experts_per_tok=2,
                moe_intermediate_size=16,
                shared_expert_intermediate_size=16,
            )
        ),
        "text",
    ),
    "gemma2": (lambda: hf.Gemma2Model(hf.Gemma2Config(**NARROW, **CAPPED)), "text"),
    "git": (lambda: hf.GitVisionModel(hf.GitConfig(vision_config=IMAGE_TOWER).vision_config), "image"),
    "gpt_oss": (
        lambda: hf.GptOssModel(hf.GptOssConfig(**NARROW, num_local_experts=2, num_experts_per_tok=1, head_dim=8)),
        "text",
    ),
    "granite_swa": (lambda: hf.GraniteSWAModel(hf.GraniteSWAConfig(**NARROW, **LAYERS)), "text"),
    "granitemoe_swa": (
        lambda: hf.GraniteMoeSWAModel(hf.GraniteMoeSWAConfig(**NARROW, **LAYERS, num_local_experts=2)),
        "text",
    ),
    "informer": (
        lambda: hf.InformerModel(hf.InformerConfig(**SERIES, attention_type="full", distil=False)),
        "series",
    ),
    "markuplm": (lambda: hf.MarkupLMModel(hf.MarkupLMConfig(**TEXT)), "text"),
    "mimo_v2_flash": (
        lambda: hf.MiMoV2FlashModel(
            hf.MiMoV2FlashConfig(
                **NARROW,
                **LAYERS,
                head_dim=8,
                v_head_dim=6,
                n_routed_experts=2,
                num_experts_per_tok=1,
                moe_intermediate_size=16,
            )
        ),
        "text",
    ),
    "nllb_moe": (nllb_moe, "text to text"),
    "openai_privacy_filter": (
        lambda: hf.OpenAIPrivacyFilterModel(
            hf.OpenAIPrivacyFilterConfig(**NARROW, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
        ),
        "text",
    ),
    "patchtsmixer": (
        lambda: hf.PatchTSMixerModel(hf.PatchTSMixerConfig(d_model=16, self_attn=True, self_attn_heads=2)),
        "patches",
    ),
    "speech_to_text": (speech_to_text, "sound to text"),
    "splinter": (lambda: hf.SplinterModel(hf.SplinterConfig(**TEXT)), "text"),
    "switch_transformers": (switch_transformers, "text to text"),
    "t5gemma": (t5gemma, "text to text"),
    "time_series_transformer": (
        lambda: hf.TimeSeriesTransformerModel(hf.TimeSeriesTransformerConfig(**SERIES)),
        "series",
    ),
    "vaultgemma": (lambda: hf.VaultGemmaModel(hf.VaultGemmaConfig(**NARROW, **CAPPED, **LAYERS)), "text"),
}


def is_installed(family: str) -> bool:
    """Return whether the installed transformers has a family."""
    return find_spec(f"transformers.models.{_get_folder(family)}") is not None


def is_exchangeable(family: str) -> bool:
    """Return whether the attention of a family can be exchanged in the installed transformers, by `supported`."""
    types = [name for name, path in list_model_types().items() if path.name == _get_folder(family)]
    return not any("cannot be exchanged" in supported()[name].reason for name in types)


def _get_folder(family: str) -> str:
    return family.removesuffix("_vision")


def make_eager_model(family: str) -> Any:
    """Build a family's model with weights drawn so that attention is peaky and every optional part matters."""
    torch.manual_seed(7)
    model = EAGER_MODELS[family][0]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "sink" in name:
                parameter.normal_(0.0, 1.0)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif "embed" in name or "relative" in name:
                parameter.normal_(0.0, 1.0)
            else:
                parameter.normal_(0.0, 1.5 / parameter[0].numel() ** 0.5)
    return model


def make_eager_inputs(family: str, side: str | None = None) -> dict[str, torch.Tensor]:
    """Make a family's inputs; with a side, two rows of which one is padded there."""
    kind = EAGER_MODELS[family][1]
    generator = torch.Generator().manual_seed(5)
    if kind == "image":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    if kind == "video":
        return {"pixel_values_videos": torch.randn(2, 2, 3, 16, 16, generator=generator)}
    if kind == "patches":
        return {"past_values": torch.randn(2, 32, 1, generator=generator)}
    if kind == "series":
        past, future = (2, 14), (2, 6)
        return {
            "past_values": torch.randn(past, generator=generator),
            "past_time_features": torch.zeros(*past, 0),
            "past_observed_mask": torch.ones(past),
            "future_values": torch.randn(future, generator=generator),
            "future_time_features": torch.zeros(*future, 0),
        }
    ids, real = draw_padded_tokens((TOKENS, TOKENS if side is None else TOKENS - 7), side or "left")
    masks = {} if side is None else {"attention_mask": real}
    if kind == "text":
        return {"input_ids": ids, **masks}
    inputs = {"decoder_input_ids": ids[:, :9].clamp(min=3)}
    if kind == "text to text":
        return {"input_ids": ids, **inputs, **masks}
    return {"input_features": torch.randn(2, TOKENS, 8, generator=generator), **inputs, **masks}
