"""Tiny models that align words, and a tokenizer whose words have one to three tokens."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordPiece
from tokenizers.processors import TemplateProcessing

from tests.support.models import ENCODER_DECODER, VOCABULARY, draw_weights, make_model

SOURCE = "the old red house stands"
TARGET = "das alte rote Haus steht"


def bart() -> Any:
    return hf.BartForConditionalGeneration(hf.BartConfig(**ENCODER_DECODER, max_position_embeddings=64))


def m2m_100() -> Any:
    return hf.M2M100ForConditionalGeneration(hf.M2M100Config(**ENCODER_DECODER, max_position_embeddings=64))


def nllb_moe() -> Any:
    experts = {"num_experts": 2, "encoder_sparse_step": 2, "decoder_sparse_step": 2, "expert_capacity": 64}
    return hf.NllbMoeForConditionalGeneration(
        hf.NllbMoeConfig(**ENCODER_DECODER, **experts, max_position_embeddings=64)
    )


OTHERS = {"bart": bart, "m2m_100": m2m_100, "nllb_moe": nllb_moe}
TRANSLATORS = ("marian", "t5", *OTHERS)


def make_translator(name: str) -> Any:
    """Build a tiny encoder-decoder with peaky attention."""
    if name not in OTHERS:
        return make_model(name)
    torch.manual_seed(7)
    return draw_weights(OTHERS[name]().eval(), name)


def make_tokenizer(*, language: str | None = None, end: str | None = "</s>") -> Any:
    """Make a tokenizer that splits words into letters and pairs of letters."""
    letters = sorted(set(SOURCE + TARGET) - {" "})
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    words = ["<pad>", "<s>", "</s>", "<unk>", "the", "old", "##se", "Haus", "das", "##te", *pieces]
    vocabulary = {word: number for number, word in enumerate(words)}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [(name, vocabulary[name]) for name in (language, end) if name is not None]
    template = " ".join(name for name in (language, "$A", end) if name is not None)
    tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )
