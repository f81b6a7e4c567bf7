"""Translations whose alignment is recorded while they are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import keywise.hf
from keywise.alignment import AlignmentHead, AlignmentHeads, translate
from keywise.alignment.align import PairReader
from keywise.alignment.encoding import EncodedPair, encode_source
from keywise.alignment.translate import _find_owners, _sum_rows, _write, split_sentences
from keywise.alignment.words import split_words
from keywise.errors import ModelError, OptionError
from tests.alignment.models import SOURCE, TRANSLATORS, make_tokenizer, make_translator
from tests.alignment.test_align import compute_eager_weights, sum_words
from tests.support.models import VOCABULARY, make_model

HEADS = [AlignmentHead(0, 1), AlignmentHead(1, 2, "output"), AlignmentHead(1, 3)]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def make_pair(name):
    """Build a model that writes letters, with its tokenizer."""
    is_translator = name in TRANSLATORS
    model = keywise.hf.use(make_translator(name) if is_translator else make_model(name))
    tokenizer = make_tokenizer(end="</s>" if is_translator else None)
    model.generation_config.suppress_tokens = [0, 1, 2, 3, *range(len(tokenizer), VOCABULARY)]
    model.generation_config.forced_eos_token_id = None
    return model, tokenizer


@pytest.mark.parametrize("name", [*TRANSLATORS, "llama"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_rows_of_generation_equal_eager_weights_of_the_result(name, num_beams):
    model, tokenizer = make_pair(name)
    source = split_words("source", SOURCE)
    options = {"num_beams": num_beams, "max_new_tokens": 12, "do_sample": False}
    heads = AlignmentHeads(tuple(HEADS))
    written = _write(PairReader(model, tokenizer), tokenizer, source, heads, options)
    assert len(written.tokens) == 12
    target = split_words("target", written.text)
    start = encode_source(model, tokenizer, source)
    pair = EncodedPair(
        start.encoder_ids,
        (*start.decoder_ids, *written.tokens),
        start.key_words,
        (*start.query_words, *_find_owners(written.ends, target)),
    )
    eager = compute_eager_weights(model, pair)
    for step in range(12):
        for number, head in enumerate(HEADS):
            row = eager[head.layer, head.head, len(start.decoder_ids) - 1 + step]
            expected = np.zeros(5)
            for key, word in enumerate(start.key_words):
                if word >= 0:
                    expected[word] += row[key]
            np.testing.assert_allclose(written.rows[number, step], expected, rtol=0, atol=3e-6)
    # The last token has no row of its own, because it was not read.
    words = len(target.spans) - 1
    expected = sum_words(eager, pair, HEADS, 5, words + 1)
    actual = _sum_rows(written, source, target, heads)
    np.testing.assert_allclose(actual[:, :words], expected[:, :words], rtol=0, atol=5e-6)


def test_sentences_are_translated_one_by_one():
    model, tokenizer = make_pair("marian")
    sentences = translate(model, tokenizer, "the house stands. the old.", heads=HEADS, max_new_tokens=6)
    first = next(sentences)
    assert first.source == "the house stands."
    assert first.alignment.target == tuple(first.text.split())
    assert not first.complete
    rest = list(sentences)
    assert [each.source for each in rest] == ["the old."]


def test_whole_text_may_be_one_sentence():
    model, tokenizer = make_pair("marian")
    text = "the house stands. the old."
    (only,) = translate(model, tokenizer, text, heads=HEADS, max_new_tokens=4, by_sentence=False)
    assert only.source == text


def test_untuned_heads_are_ranked_once():
    model, tokenizer = make_pair("marian")
    first, second = translate(model, tokenizer, "the house. the old.", max_new_tokens=6)
    assert first.alignment.heads is second.alignment.heads
    assert not first.alignment.heads.is_tuned


def test_causal_model_stops_at_the_end_of_the_line():
    model, tokenizer = make_pair("llama")
    (only,) = translate(model, tokenizer, "the house", heads=HEADS, languages=("a", "b"), max_new_tokens=6)
    assert "\n" not in only.text


def test_causal_model_needs_the_languages():
    model, tokenizer = make_pair("llama")
    with pytest.raises(OptionError, match="languages must be given for a causal language model"):
        translate(model, tokenizer, "the house", heads=HEADS)


def test_sentences_end_at_lines_too():
    assert split_sentences("One two.\nThree four. Five", "xxx") == ["One two.", "Three four.", "Five"]


@pytest.mark.parametrize(
    ("arguments", "argument", "error"),
    [
        ({"text": " \n"}, "text", OptionError),
        ({"num_beams": 0}, "num_beams", OptionError),
        ({"max_new_tokens": 0}, "max_new_tokens", OptionError),
        ({"heads": [(9, 0)]}, "heads", OptionError),
        ({"text": "the " * 100}, "text", OptionError),
    ],
)
def test_wrong_arguments_are_named(arguments, argument, error):
    model, tokenizer = make_pair("marian")
    call = {"text": SOURCE, "heads": HEADS, **arguments}
    with pytest.raises(error) as raised:
        list(translate(model, tokenizer, **call))
    assert raised.value.argument == argument


def test_encoders_are_refused():
    with torch.no_grad(), pytest.raises(ModelError):
        list(translate(make_model("bert"), make_tokenizer(), SOURCE, heads=[(0, 0)]))
