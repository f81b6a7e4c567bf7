"""Tiny random chat models in folders, with tokenizers of bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] + '[end]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)
SPECIAL = ("[pad]", "[user]", "[assistant]", "[end]")


def make_byte_tokenizer(added: Sequence[str] = (), template: str | None = CHAT_TEMPLATE) -> Any:
    """Make a fast tokenizer of bytes, with added tokens that are not special."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.add_tokens([AddedToken(word, special=False, normalized=False) for word in added])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="[end]", pad_token="[pad]")
    tokenizer.chat_template = template
    return tokenizer


def make_chat_model(**config: Any) -> Any:
    """Make a random Llama for `make_byte_tokenizer`."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": 288, "pad_token_id": 256, "bos_token_id": None, "eos_token_id": 259}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **ids, "max_position_embeddings": 2048, **config})).eval()


def write_chat_model(
    folder: Path, *, added: Sequence[str] = (), template: str | None = CHAT_TEMPLATE, **config: Any
) -> Path:
    """Write a tiny chat model as safetensors and return its folder."""
    make_chat_model(**config).save_pretrained(folder)
    make_byte_tokenizer(added, template).save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
