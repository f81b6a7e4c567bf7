"""Tiny random transformers models with attention far from uniform, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

TOKENS = 20
WINDOW = 6
VOCABULARY = 64

SCORING = ("q_proj", "k_proj", "query", "key", "qkv", "c_attn", ".q.", ".k.")
LOOKED_UP = ("embed", "wte", "wpe", "shared", "relative", "lm_head")

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "decoder_start_token_id": 1,
}


@dataclass(frozen=True)
class Family:
    """One kind of model: how to build it, what it takes, whether it generates text."""

    build: Callable[[], Any]
    takes: str = "text"
    generates: bool = True

    @property
    def padded(self) -> bool:
        """Whether its input can be padded."""
        return self.takes in {"text", "text to text"}


def llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, num_key_value_heads=2))


def qwen2() -> Any:
    return hf.Qwen2ForCausalLM(hf.Qwen2Config(**TEXT, num_key_value_heads=2))


def mistral() -> Any:
    return hf.MistralForCausalLM(hf.MistralConfig(**TEXT, num_key_value_heads=1, sliding_window=WINDOW))


def gemma2() -> Any:
    capped = {"attn_logit_softcapping": 4.0, "query_pre_attn_scalar": 8, "head_dim": 8, "tie_word_embeddings": False}
    return hf.Gemma2ForCausalLM(hf.Gemma2Config(**TEXT, **capped, num_key_value_heads=2, sliding_window=WINDOW))


def gpt_oss() -> Any:
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 8}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**TEXT, **experts, num_key_value_heads=2, sliding_window=WINDOW))


def phi3() -> Any:
    return hf.Phi3ForCausalLM(hf.Phi3Config(**TEXT, num_key_value_heads=2))


def gpt2() -> Any:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}
    ends = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, **ends))


def bert() -> Any:
    return hf.BertForMaskedLM(hf.BertConfig(**TEXT))


def vit() -> Any:
    sizes = {key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")}
    return hf.ViTForImageClassification(hf.ViTConfig(**sizes, image_size=16, patch_size=4, num_labels=5))


def t5() -> Any:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "relative_attention_num_buckets": 8}
    ends = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": None, "decoder_start_token_id": 1}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **ends))
    # Tied to the embeddings, a random model only repeats its last token.
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCABULARY, 32))
    return model


def marian() -> Any:
    return hf.MarianMTModel(hf.MarianConfig(**ENCODER_DECODER, max_position_embeddings=64))


def whisper() -> Any:
    sizes = {"num_mel_bins": 8, "max_source_positions": 2 * TOKENS, "max_target_positions": 64}
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**ENCODER_DECODER, **sizes))


FAMILIES = {
    "llama": Family(llama),
    "qwen2": Family(qwen2),
    "mistral": Family(mistral),
    "gemma2": Family(gemma2),
    "gpt_oss": Family(gpt_oss),
    "phi3": Family(phi3),
    "gpt2": Family(gpt2),
    "bert": Family(bert, generates=False),
    "vit": Family(vit, takes="image", generates=False),
    "t5": Family(t5, takes="text to text"),
    "marian": Family(marian, takes="text to text"),
    "whisper": Family(whisper, takes="sound to text"),
}
DECODERS = tuple(name for name, family in FAMILIES.items() if family.takes == "text" and family.generates)
ENCODER_DECODERS = tuple(name for name, family in FAMILIES.items() if family.takes.endswith("to text"))


def make_model(name: str) -> Any:
    """Build a family's model with weights drawn so that attention is peaky and every optional part matters."""
    torch.manual_seed(7)
    return draw_weights(FAMILIES[name].build().eval(), name)


def draw_weights(model: Any, name: str) -> Any:
    """Draw a model's weights so that attention is peaky and every optional part matters, and return the model."""
    # T5 does not scale its scores: what makes the others peaky would leave it one-hot.
    attention = 1.0 if name == "t5" else 2.0
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("sinks"):
                parameter.normal_(0.0, 1.0)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif any(part in key for part in LOOKED_UP):
                parameter.normal_(0.0, 1.0 if name == "t5" else 0.3)
            else:
                fan_in = parameter.shape[0] if name == "gpt2" else parameter[0].numel()
                is_scoring = any(part in key for part in SCORING)
                parameter.normal_(0.0, (attention if is_scoring else 1.0) / fan_in**0.5)
    return model


def draw_padded_tokens(lengths: tuple[int, ...], side: str, tokens: int = TOKENS) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw token ids [B, tokens] and their padding mask, 1 for a real token."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, VOCABULARY, (len(lengths), tokens), generator=generator)
    real = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        real[row, slice(tokens - length, tokens) if side == "left" else slice(0, length)] = 1
    return ids * real, real


def make_inputs(name: str, side: str | None = None) -> dict[str, torch.Tensor]:
    """Make a model's inputs; with a side, two rows of which one is padded there."""
    takes = FAMILIES[name].takes
    generator = torch.Generator().manual_seed(5)
    if takes == "image":
        return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator)}
    targets = torch.randint(3, VOCABULARY, (2, 9), generator=generator)
    if takes == "sound to text":
        return {"input_features": torch.randn(2, 8, 4 * TOKENS, generator=generator), "decoder_input_ids": targets}
    ids, real = draw_padded_tokens((TOKENS, TOKENS if side is None else TOKENS - 7), side or "left")
    if takes == "text to text":
        arguments = {"input_ids": ids, "decoder_input_ids": targets}
        return arguments if side is None else {**arguments, "attention_mask": real}
    if side is None:
        return {"input_ids": ids}
    if name == "bert":
        return {"input_ids": ids, "attention_mask": real}
    return {"input_ids": ids, "attention_mask": real, "position_ids": (real.cumsum(-1) - 1).clamp(min=0)}


def make_tokenizer(*words: str) -> Any:
    """Make a tokenizer that knows these words."""
    vocabulary = {word: number for number, word in enumerate(words)}
    return hf.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token=words[0])))
