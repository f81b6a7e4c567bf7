"""Tiny models that align words, and a tokenizer whose words have one to three tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel, WordPiece
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
    words = ["<pad>", "<s>", "</s>", "<unk>", "the", "old", "##se", "Haus", "das", *pieces]
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


DICTIONARY = {
    "the": "la", "red": "rouge", "house": "maison", "old": "vieille", "white": "blanche", "stands": "debout",
    "door": "porte", "closed": "close", "here": "ici", "still": "encore",
}  # fmt: skip


def make_dictionary_translator() -> tuple[Any, Any]:
    """Build an encoder-decoder whose only cross-attention head attends from each word to its translation."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *DICTIONARY, *DICTIONARY.values()]
    sizes = {**ENCODER_DECODER, "encoder_layers": 1, "decoder_layers": 1, "decoder_attention_heads": 1}
    model = hf.MarianMTModel(hf.MarianConfig(**sizes, max_position_embeddings=64)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Only embeddings, norms and the scores of cross-attention remain.
            if "layer_norm" not in name:
                parameter.zero_()
        embeddings = model.model.shared.weight
        # Far above the sinusoidal positions, which are made anew when the model is loaded.
        embeddings[: len(names)] = 50 * torch.eye(len(names), embeddings.shape[1])
        cross = model.model.decoder.layers[0].encoder_attn
        cross.k_proj.weight.copy_(torch.eye(embeddings.shape[1]))
        for source, target in DICTIONARY.items():
            cross.q_proj.weight[names.index(source), names.index(target)] = 10.0
    tokenizer = Tokenizer(WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return model, hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


def draw_dictionary_pairs(count: int) -> list[tuple[list[str], list[str], list[tuple[int, int]]]]:
    """Draw sentences, their translations in another order, and the links between their words."""
    generator = np.random.default_rng(4)
    pairs = []
    for _ in range(count):
        source = [str(word) for word in generator.permutation(list(DICTIONARY))[: generator.integers(3, 9)]]
        order = [int(number) for number in generator.permutation(len(source))]
        target = [DICTIONARY[source[number]] for number in order]
        pairs.append((source, target, sorted((number, place) for place, number in enumerate(order))))
    return pairs
