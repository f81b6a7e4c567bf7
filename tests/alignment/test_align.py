"""Alignments by attention against sums of eager weights, and models whose alignment is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

import keywise.hf
from keywise.alignment import AlignmentHead, AlignmentHeads, align
from keywise.alignment.encoding import encode_pair
from keywise.alignment.word_weights import record_packed_weights, record_word_weights
from keywise.alignment.words import split_words
from keywise.errors import DtypeError, ModelError, OptionError
from tests.alignment.models import (
    SOURCE,
    TARGET,
    TRANSLATORS,
    draw_dictionary_pairs,
    make_dictionary_translator,
    make_tokenizer,
    make_translator,
)
from tests.support.models import ENCODER_DECODER, make_model

TOLERANCE = 2e-6
HEADS = [AlignmentHead(0, 1), AlignmentHead(1, 2, "output"), AlignmentHead(1, 3), AlignmentHead(0, 0, "output")]

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def compute_eager_weights(model, pair):
    """Return the weights [layers, heads, rows, keys] of the attention that leads from target to source."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            ids = {"input_ids": [pair.encoder_ids], "decoder_input_ids": [pair.decoder_ids]}
            out = model(**{name: torch.tensor(value) for name, value in ids.items()}, output_attentions=True)
            layers = out.cross_attentions
        else:
            layers = model(torch.tensor([pair.decoder_ids]), output_attentions=True).attentions
    keywise.hf.use(model)
    return torch.stack(layers)[:, 0].numpy()


def sum_words(weights, pair, heads, sources, targets):
    """Return the weights of words from the definition: summed over source tokens, averaged over target tokens."""
    sums = np.zeros((len(heads), targets, sources))
    counts = np.zeros(targets)
    for position, target in enumerate(pair.query_words):
        if target < 0:
            continue
        counts[target] += 1
        for key, source in enumerate(pair.key_words):
            if source >= 0:
                for number, head in enumerate(heads):
                    row = position - (head.row == "output")
                    sums[number, target, source] += weights[head.layer, head.head, row, key]
    return sums / counts[:, None]


@pytest.mark.parametrize("name", [*TRANSLATORS, "llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("block_tokens", [256, 3])
def test_weights_equal_sums_of_eager_weights(name, block_tokens):
    is_translator = name in TRANSLATORS
    model = keywise.hf.use(make_translator(name) if is_translator else make_model(name))
    tokenizer = make_tokenizer(language="<s>" if name in ("m2m_100", "nllb_moe") else None)
    source, target = split_words("source", SOURCE), split_words("target", TARGET)
    pair = encode_pair(model, tokenizer, source, target)
    assert len(pair.decoder_ids) > len(target.spans) + 3
    expected = sum_words(compute_eager_weights(model, pair), pair, HEADS, 5, 5)
    counts = {"source_words": 5, "target_words": 5}
    actual = record_word_weights(model, pair, HEADS, **counts, block_tokens=block_tokens)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)
    alignment = align(model, tokenizer, SOURCE, TARGET, heads=HEADS)
    np.testing.assert_allclose(alignment.weights, expected.mean(0), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(alignment.null, 1 - expected.mean(0).sum(1), rtol=0, atol=4 * TOLERANCE)


def test_decoder_begins_with_start_token_and_language():
    model, tokenizer = make_translator("m2m_100"), make_tokenizer(language="<s>")
    pair = encode_pair(model, tokenizer, split_words("source", "the"), split_words("target", "das"))
    start, language, end = model.config.decoder_start_token_id, 1, 2
    assert pair.decoder_ids == (start, language, tokenizer.convert_tokens_to_ids("das"))
    assert pair.encoder_ids == (language, tokenizer.convert_tokens_to_ids("the"), end)
    assert pair.key_words == (-1, 0, -1)
    assert pair.query_words == (-1, -1, 0)


def test_texts_are_read_from_template():
    model, tokenizer = make_model("llama"), make_tokenizer(end=None)
    names = ("the", "das")
    pair = encode_pair(model, tokenizer, split_words("source", "old"), split_words("target", "Haus"), languages=names)
    text = tokenizer.decode(pair.decoder_ids)
    assert text.split() == tokenizer.decode(tokenizer("the: old\ndas: Haus")["input_ids"]).split()
    assert [word for word in pair.key_words if word >= 0] == [0]
    assert pair.query_words[-1] == 0


def test_given_words_are_kept():
    model = keywise.hf.use(make_translator("marian"))
    alignment = align(model, make_tokenizer(), ["the", "old house"], ["das", "Haus"], heads=[(0, 0)])
    assert alignment.source == ("the", "old house")
    assert alignment.weights.shape == (2, 2)


def test_reverse_reads_both_directions():
    model, tokenizer = keywise.hf.use(make_model("llama")), make_tokenizer(end=None)
    heads = AlignmentHeads((AlignmentHead(0, 1),), (AlignmentHead(1, 2),))
    both = align(model, tokenizer, SOURCE, TARGET, heads=heads, reverse=True)
    forward = align(model, tokenizer, SOURCE, TARGET, heads=heads)
    backward = align(model, tokenizer, TARGET, SOURCE, heads=[(1, 2)])
    np.testing.assert_allclose(both.scores, np.sqrt(forward.scores * backward.scores.T), rtol=1e-5)
    union = align(model, tokenizer, SOURCE, TARGET, heads=heads, reverse=True, symmetrise="union")
    swapped = {(source, target) for target, source in backward.links}
    assert set(union.links) == {*forward.links, *swapped}


def test_reverse_model_is_read_with_its_own_heads():
    one, other, tokenizer = make_translator("marian"), make_translator("bart"), make_tokenizer()
    heads = AlignmentHeads((AlignmentHead(0, 1),), (AlignmentHead(1, 2),))
    both = align(one, tokenizer, SOURCE, TARGET, heads=heads, reverse=(other, tokenizer))
    backward = align(other, tokenizer, TARGET, SOURCE, heads=[(1, 2)])
    forward = align(one, tokenizer, SOURCE, TARGET, heads=[(0, 1)])
    np.testing.assert_allclose(both.scores, np.sqrt(forward.scores * backward.scores.T), rtol=1e-5)


def test_attention_of_the_model_is_restored():
    model = make_translator("marian")
    model.set_attn_implementation("eager")
    align(model, make_tokenizer(), SOURCE, TARGET, heads=[(0, 0)])
    assert model.config._attn_implementation == "eager"


def test_alignment_heads_of_the_generation_config_are_used():
    model = make_translator("marian")
    model.generation_config.alignment_heads = [[1, 3]]
    assert align(model, make_tokenizer(), SOURCE, TARGET).heads.forward == (AlignmentHead(1, 3),)


def test_untuned_heads_are_ranked_and_say_so():
    model, tokenizer = make_model("llama"), make_tokenizer(end=None)
    alignment = align(model, tokenizer, SOURCE, TARGET, reverse=True)
    assert len(alignment.heads.forward) == len(alignment.heads.backward) == 4
    assert not alignment.heads.is_tuned
    assert "untuned" in repr(alignment)


def test_words_that_the_tokenizer_drops_are_unaligned():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = __import__("tokenizers").normalizers.Replace("§", "")
    alignment = align(make_translator("marian"), tokenizer, "the § house", "das Haus", heads=[(0, 0)])
    assert alignment.dropped_source == (1,)
    assert 1 in alignment.unaligned_source
    assert not alignment.weights[:, 1].any()


@pytest.mark.parametrize(
    ("arguments", "argument", "error"),
    [
        ({"source": ""}, "source", OptionError),
        ({"target": "  "}, "target", OptionError),
        ({"target": ["das", ""]}, "target", OptionError),
        ({"source": 3}, "source", DtypeError),
        ({"heads": [(2, 0)]}, "heads", OptionError),
        ({"heads": [(0, 4)]}, "heads", OptionError),
        ({"heads": []}, "heads", OptionError),
        ({"heads": [3]}, "heads", OptionError),
        ({"symmetrise": "sum"}, "symmetrise", OptionError),
        ({"symmetrise": "union"}, "symmetrise", OptionError),
        ({"languages": "English"}, "languages", OptionError),
        ({"languages": ("English",)}, "languages", OptionError),
        ({"words": "bytes"}, "words", OptionError),
        ({"reverse": True}, "reverse", ModelError),
        ({"source": "the " * 70}, "source", OptionError),
    ],
)
def test_wrong_arguments_are_named(arguments, argument, error):
    model = make_translator("marian")
    call = {"source": SOURCE, "target": TARGET, "heads": [(0, 0)], **arguments}
    with pytest.raises(error) as raised:
        align(model, make_tokenizer(), **call)
    assert raised.value.argument == argument


def test_models_without_attention_to_a_source_are_refused():
    with pytest.raises(ModelError, match="encoder-decoder or a causal language model"):
        align(make_model("bert"), make_tokenizer(), SOURCE, TARGET, heads=[(0, 0)])


def test_template_needs_source_before_target():
    with pytest.raises(OptionError) as raised:
        align(make_model("llama"), make_tokenizer(), SOURCE, TARGET, heads=[(0, 0)], template="{target} {source}")
    assert raised.value.argument == "template"


def test_planted_dictionary_is_found_without_error():
    model, tokenizer = make_dictionary_translator()
    for source, target, links in draw_dictionary_pairs(20):
        alignment = align(model, tokenizer, source, target, heads=[(0, 0)])
        assert list(alignment.links) == links, (source, target)


def test_memory_is_linear_in_rows_and_words():
    """The rows of one block are as large for all layers together as the block is long."""
    model, tokenizer = keywise.hf.use(make_model("llama")), make_tokenizer(end=None)
    model.config.max_position_embeddings = 4096
    source, target = split_words("source", ["the"] * 500), split_words("target", ["das"] * 500)
    pair = encode_pair(model, tokenizer, source, target)
    counts = {"source_words": 500, "target_words": 500}
    largest = 0
    add = keywise.hf.recording.StatsCollector.add

    def watch(collector, plan, stats):
        nonlocal largest
        output = add(collector, plan, stats)
        recorded = [each.stats for each in collector.record]
        assert all(stats.key_mass is None for stats in recorded)
        largest = max(largest, sum(stats.segment_mass.numel() for stats in recorded))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keywise.hf.recording.StatsCollector, "add", watch)
        record_word_weights(model, pair, [AlignmentHead(0, 1), AlignmentHead(1, 2)], **counts, block_tokens=64)
    assert largest <= 2 * 65 * 500


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "mistral"])
def test_directions_read_in_one_pass_equal_those_read_alone(name):
    model, tokenizer = keywise.hf.use(make_model(name)), make_tokenizer(end=None)
    source, target = split_words("source", SOURCE), split_words("target", "das alte Haus")
    pairs = [encode_pair(model, tokenizer, source, target), encode_pair(model, tokenizer, target, source)]
    heads = [HEADS[:2], HEADS[1:]]
    packed = record_packed_weights(model, pairs, heads, [(5, 3), (3, 5)])
    forward = record_word_weights(model, pairs[0], heads[0], source_words=5, target_words=3)
    backward = record_word_weights(model, pairs[1], heads[1], source_words=3, target_words=5)
    np.testing.assert_allclose(packed[0], forward, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(packed[1], backward, rtol=0, atol=TOLERANCE)


def test_models_that_do_not_separate_packed_pairs_are_noticed(monkeypatch):
    model, tokenizer = keywise.hf.use(make_model("llama")), make_tokenizer(end=None)
    words = split_words("source", SOURCE), split_words("target", TARGET)
    pairs = [encode_pair(model, tokenizer, *words), encode_pair(model, tokenizer, *words[::-1])]
    forward = type(model).forward

    def forget_positions(model, ids, position_ids=None, **options):
        return forward(model, ids, **options)

    monkeypatch.setattr(type(model), "forward", forget_positions)
    assert record_packed_weights(model, pairs, [HEADS, HEADS], [(5, 5), (5, 5)]) is None


def make_language_tokenizer():
    vocabulary = {piece: number for number, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁", *"thelas"])}
    return hf.NllbTokenizer(vocab=vocabulary, merges=[], src_lang="deu_Latn", tgt_lang="deu_Latn")


def test_languages_are_codes_of_a_tokenizer_with_several():
    tokenizer = make_language_tokenizer()
    sizes = {**ENCODER_DECODER, "vocab_size": len(tokenizer)}
    model = hf.M2M100ForConditionalGeneration(hf.M2M100Config(**sizes, max_position_embeddings=64)).eval()
    words = split_words("source", "the"), split_words("target", "la")
    pair = encode_pair(model, tokenizer, *words, languages=("eng_Latn", "fra_Latn"))
    english, french = (tokenizer.convert_tokens_to_ids(code) for code in ("eng_Latn", "fra_Latn"))
    assert pair.encoder_ids[0] == english
    assert pair.decoder_ids[:2] == (model.config.decoder_start_token_id, french)
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("deu_Latn", "deu_Latn")
    alignment = align(
        model, tokenizer, "the", "la", heads=[(0, 0)], languages=("eng_Latn", "fra_Latn"), reverse=(model, tokenizer)
    )
    assert alignment.weights.shape == (1, 1)
    with pytest.raises(OptionError, match="such as ace_Arab") as raised:
        encode_pair(model, tokenizer, *words, languages=("eng_Latn", "tlh"))
    assert raised.value.argument == "languages"
    assert (tokenizer.src_lang, tokenizer.tgt_lang) == ("deu_Latn", "deu_Latn")


def test_heads_of_the_other_model_may_lie_in_layers_of_its_own():
    tokenizer = make_tokenizer()
    deep = hf.BartForConditionalGeneration(
        hf.BartConfig(**{**ENCODER_DECODER, "decoder_layers": 4}, max_position_embeddings=64)
    ).eval()
    heads = AlignmentHeads((AlignmentHead(1, 0),), (AlignmentHead(3, 0),))
    shallow = make_translator("marian")
    assert align(shallow, tokenizer, SOURCE, TARGET, heads=heads, reverse=(deep, tokenizer)).heads == heads
    with pytest.raises(OptionError):
        align(deep, tokenizer, SOURCE, TARGET, heads=heads, reverse=(shallow, tokenizer))
