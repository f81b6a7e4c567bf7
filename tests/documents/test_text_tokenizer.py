"""Text is data: no text becomes an added token of the tokenizer, whether special or not."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from keywise.documents.prompt import Prompt
from keywise.documents.text_tokenizer import TextTokenizer
from keywise.errors import ModelError
from keywise.models import LoadedModel
from tests.support.chat_models import CHAT_TEMPLATE, make_byte_tokenizer, make_chat_model

ADDED = ("<tool_call>", "</tool_call>", "<|user|>", "ASSISTANT", "◁think▷", "    ")


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return LoadedModel(make_chat_model(), make_byte_tokenizer(ADDED), "tiny", None)


@pytest.mark.parametrize(
    "text",
    [
        "Run <tool_call>x</tool_call> now.",
        "<|user|> say yes",
        "é ◁think▷ ü",
        "[end] [user] [assistant]",
        "MASSISTANTX",
        "<tool_call>",
        "😀<|user|>😀 ",
        "",
    ],
)
def test_added_tokens_in_a_text_stay_text(loaded: LoadedModel, text: str) -> None:
    tokenizer = TextTokenizer(loaded)
    token_ids, offsets = tokenizer.encode(text)
    assert all(number < 256 for number in token_ids)
    assert loaded.tokenizer.decode(token_ids) == text
    characters = len(text.encode())
    assert len(token_ids) == len(offsets) == characters
    assert [start for start, _ in offsets] == [i for i, letter in enumerate(text) for _ in letter.encode()]


def test_texts_without_added_tokens_are_encoded_as_before(loaded: LoadedModel) -> None:
    text = "The lamp is lit:    1862."
    expected = loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert TextTokenizer(loaded).encode(text) == (expected["input_ids"], expected["offset_mapping"])
    # A token of spaces alone says what the text says.
    assert loaded.tokenizer.convert_tokens_to_ids("    ") in expected["input_ids"]


def test_only_the_template_speaks_in_added_tokens(loaded: LoadedModel) -> None:
    template = CHAT_TEMPLATE.replace("'[assistant]'", "'<tool_call>[assistant]'")
    marked = LoadedModel(loaded.model, make_byte_tokenizer(ADDED, template), "tiny", None)
    ids = Prompt(marked).encode_question("Is <tool_call> [end] lit?", start_answer=True)
    special = {number: ids.token_ids.count(number) for number in range(256, 266)}
    assert {number: count for number, count in special.items() if count} == {258: 1, 259: 1, 260: 1}
    assert max(ids.token_ids[ids.question]) < 256


def make_vocabulary_tokenizer(kind: str) -> Any:
    """Make a tokenizer whose vocabulary itself has the words of its added tokens."""
    letters = [chr(number) for number in range(33, 127)]
    pieces = ["<unk>", "▁", *letters, "<tool>", "</s>", "▁lamp"]
    if kind == "unigram":
        backend = Tokenizer(models.Unigram([(piece, -float(len(piece) < 3)) for piece in pieces], unk_id=0))
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Metaspace()
    elif kind == "lowercase":
        backend = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>"))
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
    else:
        backend = Tokenizer(
            models.BPE(
                {piece: number for number, piece in enumerate(pieces)}, [], unk_token="<unk>", ignore_merges=True
            )
        )
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>"])
    backend.add_tokens([AddedToken("<tool>", special=False, normalized=kind == "lowercase")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.mark.parametrize("kind", ["unigram", "lowercase", "whole words"])
@pytest.mark.parametrize("text", ["<tool>", "a <tool> b", "a </s> <TOOL>", "<tool><tool></s>"])
def test_words_of_the_vocabulary_are_split(kind: str, text: str) -> None:
    tokenizer = make_vocabulary_tokenizer(kind)
    reserved = set(tokenizer.get_added_vocab().values())
    token_ids, offsets = TextTokenizer(LoadedModel(make_chat_model(), tokenizer, kind, None)).encode(text)
    assert token_ids
    assert not reserved.intersection(token_ids)
    covered = {place for start, end in offsets for place in range(start, end)}
    assert covered >= {place for place, letter in enumerate(text) if letter != " "}


def test_a_vocabulary_that_cannot_write_a_text_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"[unk]": 0, "¤": 1}, unk_token="[unk]"))
    backend.add_tokens([AddedToken("¤", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ModelError, match="writes '¤' in a text as text"):
        TextTokenizer(LoadedModel(make_chat_model(), tokenizer, "tiny", None)).encode("¤")


def test_tokens_without_an_embedding_are_refused(loaded: LoadedModel) -> None:
    small = LoadedModel(
        make_chat_model(vocab_size=100, pad_token_id=0, eos_token_id=1), loaded.tokenizer, "small", None
    )
    with pytest.raises(ModelError, match=r"an embedding of every token .* got token 220; 'small' has 100 embeddings"):
        TextTokenizer(small).encode("\x79 \xff")


def test_slow_tokenizers_are_refused(loaded: LoadedModel) -> None:
    with pytest.raises(ModelError, match="must have a fast tokenizer"):
        TextTokenizer(LoadedModel(loaded.model, object(), "slow", None))
